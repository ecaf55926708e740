"""What a report shows, as files of their own: plots as PNG and SVG, tables as Markdown and CSV.

Example:
    >>> write_tables(Path("tables"), scores=[read_json(run / "scores.json")])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mta.characters import whole_characters
from mta.evaluation.chart_drawing import draw_chart
from mta.evaluation.figures import Chart
from mta.evaluation.paper_view import csv_paper_table, markdown_paper_table, paper_tables
from mta.evaluation.plots import interval_plot
from mta.evaluation.scores_file import shown_metrics
from mta.evaluation.table import csv_table, markdown_comparisons, markdown_slices, markdown_table
from mta.files import safe_name, write_text

PICTURES = ("png", "svg")


def write_plots(folder: Path, *, scores: Sequence[Mapping[str, Any]], charts: Sequence[Chart]) -> None:
    """Draw every metric of every run, and every chart.

    Args:
        folder: where the files go; files of the same names are replaced.
        scores: contents of scores.json.
        charts: figures of sweeps and of growth.
    """
    for kind in PICTURES:
        for run in scores:
            for metric in shown_metrics(run):
                interval_plot(folder / f"{safe_name(run['task'])}-{metric}.{kind}", run, metric)
        for chart in charts:
            draw_chart(folder / f"{chart.name}.{kind}", chart)


def write_tables(folder: Path, *, scores: Sequence[Mapping[str, Any]]) -> None:
    """Write the paper's tables with these numbers, and each run's own tables.

    Args:
        folder: where the files go; files of the same names are replaced.
        scores: contents of scores.json.
    """
    for table in paper_tables(scores):
        _write(folder / f"table-{table.number}.md", markdown_paper_table(table))
        _write(folder / f"table-{table.number}.csv", csv_paper_table(table))
    for run in scores:
        parts = [markdown_table(run), markdown_comparisons(run), markdown_slices(run)]
        _write(folder / f"{safe_name(run['task'])}.md", "\n\n".join(part for part in parts if part) + "\n")
        _write(folder / f"{safe_name(run['task'])}.csv", csv_table(run))


def _write(path: Path, text: str) -> None:
    write_text(path, whole_characters(text))
