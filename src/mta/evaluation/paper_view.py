"""Tables 1 to 4 of the paper with a run's own numbers, in the paper's layout, its numbers beside them.

The two are never ranked together: they are of other base models, other users and other sizes.

Example:
    >>> tables = paper_tables([read_json(run / "scores.json") for run in runs])
    >>> print(markdown_paper_table(tables[0]))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mta.evaluation.formats import DASH, format_score, metric_title
from mta.evaluation.marks import is_proven
from mta.evaluation.measures import MEASURES
from mta.evaluation.notes import basis_line
from mta.evaluation.paper_tables import ABLATIONS, RIVALS, TABLE_1, TABLE_2, TABLE_3, TABLE_4, Numbers
from mta.evaluation.plots import best_control
from mta.evaluation.scores_file import check_scores, finite

PAPER_BASE = "llama-3-8b-instruct"
OTHER_BASE = (
    "The paper's numbers were made with Llama-3-8B-Instruct on other users; they stand here to show the layout and the "
    "order of its rows, and no number of a run can be held against one of them. What can be compared is which method "
    "leads and what a step adds, as far as the intervals allow."
)
SAME_BASE = (
    "The paper's numbers were made with the base model of these runs. They can be held against a run's number as far "
    "as people, prompts and settings are the same too, which the run card and table 4 show; the paper gives no "
    "intervals."
)
MARKS = "Marked: best and second best of the columns shown; an asterisk as in the full table."
BEST_CONTROL = "best control"
"""Column that the paper lacks: what is reached without merging anchors."""
CONTROL_MARK = "The best control, of those that merge no anchors, is not ranked with the methods; the paper has none."
WEAKER_FORMS = (
    "OPPU and Per-Pcs stand on the bare base model here, as MTA does; over an adapter trained on everybody (oppu-task, "
    "per-pcs-task, the latter as published) they may be better: see the full table."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of the run and of the paper, as texts."""

    ours: str
    paper: str
    source: str = ""
    """Whose value it is, where the column does not say."""
    best: bool = False
    second: bool = False
    proven: bool = False


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One of the paper's tables."""

    number: int
    title: str
    columns: tuple[str, ...]
    """Titles after the first."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""


def paper_tables(runs: Sequence[Mapping[str, Any]]) -> list[PaperTable]:
    """Lay out the tables that these runs have numbers for.

    Left out are tasks the paper does not have, rows of which fewer than two methods were run, and rows about
    histories and settings that a run has not recorded.

    Args:
        runs: contents of scores.json, one a task.

    Raises:
        DataError: one of them is not the content of a scores.json.
    """
    known = [run for run in map(check_scores, runs) if run["task"] in TABLE_1]
    if not known:
        return []
    basis = f"{comparable_with_paper(known)} {basis_of(known)}"
    tables = [
        _with_best_control(_scores_table(1, "Overall performance", RIVALS, TABLE_1, known, basis), known),
        _scores_table(2, "What merging and adapting bring", ABLATIONS, TABLE_2, known, basis),
        _history_table(known),
        _settings_table(known),
    ]
    return [table for table in tables if table.rows]


def comparable_with_paper(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say whether the numbers of these runs can be held against the paper's."""
    return SAME_BASE if all(PAPER_BASE in str(run["base"]).lower() for run in runs) else OTHER_BASE


def basis_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say how much stands behind each of several runs; what they share is said once."""
    lines = {str(run["task"]): basis_line(run).removesuffix(".") for run in runs}
    starts = {line.partition(":")[0] for line in lines.values()}
    if len(starts) > 1:
        return ". ".join(f"{task}: {line}" for task, line in lines.items()) + "."
    sizes = "; ".join(f"{task} {line.partition(': ')[2]}" for task, line in lines.items())
    (start,) = starts
    return f"{start[:1].upper()}{start[1:]}: {sizes}."


def _with_best_control(table: PaperTable, runs: Sequence[Mapping[str, Any]]) -> PaperTable:
    """Add the best control of each row, where any was run."""
    found = {
        f"{run['task']} {metric_title(metric)}": (control, run["methods"][control]["metrics"][metric])
        for run in runs
        for metric in TABLE_1[run["task"]]
        if (control := best_control(run, metric)) is not None
    }
    if not found:
        return table
    ends = {name: Cell(format_score(value), "", source=control) for name, (control, value) in found.items()}
    rows = tuple((name, (*cells, ends.get(name, Cell(DASH, "")))) for name, cells in table.rows)
    note = f"{WEAKER_FORMS} {CONTROL_MARK} {table.note}"
    return replace(table, columns=(*table.columns, BEST_CONTROL), rows=rows, note=note)


def _scores_table(
    number: int, title: str, columns: Sequence[str], paper: Numbers, runs: Sequence[Mapping[str, Any]], basis: str
) -> PaperTable:
    rows = tuple(
        (f"{run['task']} {metric_title(metric)}", _score_cells(run, metric, columns, values))
        for run in runs
        if len(run["methods"].keys() & set(columns)) > 1
        for metric, values in paper[run["task"]].items()
    )
    return PaperTable(number, title, tuple(columns), rows, f"{MARKS} {basis}")


def _score_cells(
    run: Mapping[str, Any], metric: str, columns: Sequence[str], paper: Mapping[str, float]
) -> tuple[Cell, ...]:
    found = {name: finite(run["methods"].get(name, {}).get("metrics", {}).get(metric)) for name in columns}
    shown = {name: format_score(value) for name, value in found.items()}
    known = [value for value in found.values() if value is not None]
    order = sorted({format_score(value): value for value in known}.items(), key=lambda item: item[1])
    ranked = [text for text, _ in (order[::-1] if MEASURES[metric].higher_is_better else order)]
    return tuple(
        Cell(
            ours=shown[name],
            paper=format_score(paper[name]),
            best=shown[name] in ranked[:1],
            second=shown[name] in ranked[1:2],
            proven=name in run["methods"] and is_proven(run, name, metric),
        )
        for name in columns
    )


def _history_table(runs: Sequence[Mapping[str, Any]]) -> PaperTable:
    sides = ("targets", "pool")
    measures = ("most", "fewest", "mean")
    rows = []
    for run in runs:
        items = (run.get("run") or {}).get("history items") or {}
        paper = TABLE_3[run["task"]]
        rows.append(
            (
                str(run["task"]),
                tuple(
                    Cell(_number((items.get(side) or {}).get(name)), _number(paper[name]) if side == "pool" else "")
                    for side in sides
                    for name in measures
                ),
            )
        )
    columns = tuple(f"{side}: {name}" for side in sides for name in measures)
    return PaperTable(
        3, "History items per user", columns, _recorded(rows), "The paper's are of all users of the task."
    )


def _settings_table(runs: Sequence[Mapping[str, Any]]) -> PaperTable:
    names = {"rank": "rank", "epochs": "epochs", "lr": "learning rate", "batch": "examples per update"}
    rows = []
    for run in runs:
        adapt = ((run.get("run") or {}).get("settings") or {}).get("adapt") or {}
        ours = {**adapt, "batch": adapt.get("batch_size")}
        paper = TABLE_4[run["task"]]
        rows.append((str(run["task"]), tuple(Cell(_number(ours.get(name)), _number(paper[name])) for name in names)))
    return PaperTable(4, "Settings of the adaptation", tuple(names.values()), _recorded(rows))


def _recorded(rows: Sequence[tuple[str, tuple[Cell, ...]]]) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Leave out the runs that have no number of their own, as those of old files."""
    return tuple((name, cells) for name, cells in rows if any(cell.ours != DASH for cell in cells))


def _number(value: Any) -> str:
    number = finite(value)
    return DASH if number is None else f"{number:.4g}"


def markdown_paper_table(table: PaperTable) -> str:
    """Return a table as Markdown; each cell holds the run's number, and the paper's in brackets."""
    lines = [
        f"Table {table.number}: {table.title} (in brackets: the paper)",
        "",
        _row(["", *table.columns]),
        _row(["---", *["---:"] * len(table.columns)]),
        *(_row([name, *map(_markdown_cell, cells)]) for name, cells in table.rows),
    ]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    mark = "**" if cell.best else "*" if cell.second else ""
    star = r"\*" if cell.proven else ""
    return f"{mark}{cell.ours}{mark}{star}{_source(cell)}" + (f" ({cell.paper})" if cell.paper else "")


def _source(cell: Cell) -> str:
    return f", {cell.source}" if cell.source else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def csv_paper_table(table: PaperTable) -> str:
    """Return a table as CSV: for each column the run's number and the paper's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *(f"{column}{part}" for column in table.columns for part in ("", " (paper)"))])
    for name, cells in table.rows:
        writer.writerow([name, *(_plain(value) for cell in cells for value in (cell.ours + _source(cell), cell.paper))])
    return text.getvalue()


def _plain(text: str) -> str:
    return "" if text == DASH else text
