"""Runs, statistics, tables, plots and reports."""
