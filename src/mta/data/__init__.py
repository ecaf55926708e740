"""Readers of data files, splits that do not leak, downloads, and invented people."""
