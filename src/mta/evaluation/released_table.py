"""Scores by the authors' scripts as a table, where a run answered as these do (`released_scores`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mta.errors import DataError
from mta.evaluation.formats import format_score
from mta.evaluation.markdown import markdown_grid, markdown_text
from mta.evaluation.scores_file import finite

TITLES: Mapping[str, str] = {
    "accuracy": "Acc", "f1": "F1 over labels that occur", "mae": "MAE", "rmse": "RMSE", "rouge_1": "R-1, stemmed",
    "rouge_l": "R-L, stemmed",
}  # fmt: skip
READING = (
    "Answers given and scored as the authors' scripts do: empty answers are dropped before labels are scored, F1 is a "
    "mean over the labels that occur, ROUGE stems words. Not the official scores, which stand in the first table."
)


def released_grid(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return head and rows of the table as texts; None for a run that has no such scores.

    Raises:
        DataError: they are no object of objects.
    """
    found = scores.get("released")
    if not found:
        return None
    if not isinstance(found, Mapping) or not all(isinstance(row, Mapping) for row in found.values()):
        raise DataError("'released' in the scores is not an object of objects; score the run again")
    metrics = list(dict.fromkeys(metric for row in found.values() for metric in row))
    head = ["method", *(TITLES.get(metric, metric) for metric in metrics)]
    return head, [[name, *(format_score(finite(row.get(metric))) for metric in metrics)] for name, row in found.items()]


def markdown_released(scores: Mapping[str, Any]) -> str:
    """Write the table as Markdown with a line on how to read it, or "" for a run that has no such scores."""
    grid = released_grid(scores)
    if grid is None:
        return ""
    head, rows = ([list(map(markdown_text, line)) for line in part] for part in ([grid[0]], grid[1]))
    return f"{markdown_grid(head[0], rows)}\n\n{markdown_text(READING)}\n"
