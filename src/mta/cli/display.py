"""What the terminal shows: tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from mta.progress import Progress, Step

if TYPE_CHECKING:
    from rich.text import Text

WIDE = 160
"""Columns of a table that no terminal shows."""
WORTH_SAYING_S = 2.0


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True))


def note(text: str) -> None:
    """Print a remark on standard error."""
    typer.echo(text.encode("utf-8", "replace").decode(), err=True)


def show_table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table; nothing in it is read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        numbers = all(_is_number(row[place]) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else _printable(cell) for cell in row))
    console.print(table)


def _printable(cell: Any) -> str:
    return str(cell).encode("utf-8", "replace").decode()


def _is_number(cell: Any) -> bool:
    return str(cell)[:1].isdecimal() or str(cell)[:1] in "-–"


def show_scores(scores: Mapping[str, Any]) -> None:
    """Print one run's scores: a table in a terminal, Markdown into a file or pipe."""
    import sys

    from mta.evaluation.formats import COST_TITLES, format_cost, metric_title
    from mta.evaluation.notes import marks_line, method_notes, reading_line, rows_are, run_line
    from mta.evaluation.scores_file import shown_metrics
    from mta.evaluation.table import MERGES_APART, markdown_comparisons, markdown_table, shown_costs

    apart = scores.get("run", {}).get(MERGES_APART)
    merges = [f"{MERGES_APART}: {apart}"] if apart else []
    if not sys.stdout.isatty():
        for part in (markdown_table(scores), markdown_comparisons(scores), *merges):
            typer.echo(part)
        return
    metrics, costs, methods = shown_metrics(scores), shown_costs(scores), scores["methods"].items()
    rows = [[name, *(_score(scores, name, metric) for metric in metrics)] for name, _ in methods]
    show_table([rows_are(scores), *map(metric_title, metrics)], rows, title=run_line(scores))
    rows = [[name, *(format_cost(cost, method.get(cost)) for cost in costs)] for name, method in methods]
    show_table([rows_are(scores), *(COST_TITLES[cost] for cost in costs)], rows)
    for line in (reading_line(scores), marks_line(scores, second="Underlined"), *method_notes(scores), *merges):
        typer.echo(line)


def _score(scores: Mapping[str, Any], name: str, metric: str) -> Text:
    from rich.text import Text

    from mta.evaluation.formats import format_interval, format_score
    from mta.evaluation.marks import best_methods, is_proven, second_methods
    from mta.evaluation.scores_file import finite, interval_of
    from mta.evaluation.table import seed_sd

    method = scores["methods"][name]
    style = "bold" if name in best_methods(scores, metric) else ""
    style = "underline" if name in second_methods(scores, metric) else style
    cell = Text().append(format_score(finite(method["metrics"].get(metric))), style=style)
    cell.append("*" if is_proven(scores, name, metric) else "")
    for more in filter(None, (format_interval(interval_of(method, metric)), seed_sd(method, metric))):
        cell.append(f"\n{more}")
    return cell


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Give library functions a way to show how far they are: bars in a terminal, else a line for each slow stage."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines
        return
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console) as bars:

        @contextmanager
        def stage(name: str) -> Iterator[Step]:
            task, started = bars.add_task(name, total=None), time.monotonic()
            yield lambda done, total: bars.update(task, completed=done, total=total)
            bars.remove_task(task)  # a list of all stages could outgrow the screen and hide the current one
            _say_seconds(name, started)

        yield stage


@contextmanager
def _lines(name: str) -> Iterator[Step]:
    started = time.monotonic()
    yield lambda done, total: None
    _say_seconds(name, started)


def _say_seconds(name: str, started: float) -> None:
    seconds = time.monotonic() - started
    if seconds > WORTH_SAYING_S:
        note(f"{name}: {seconds:.0f} s")
