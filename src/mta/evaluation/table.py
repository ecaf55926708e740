"""Tables of `scores.json` as Markdown and CSV: methods as rows, each score beside its interval.

Example:
    >>> print(markdown_table(read_json(run / "scores.json")))
    lamp-2, base smollm2-135m, seed 42: 37 people, 153 queries.
    ...
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mta.evaluation.formats import (
    COST_TITLES,
    count_text,
    format_cost,
    format_interval,
    format_p,
    format_score,
    format_signed,
    format_signed_interval,
    metric_title,
)
from mta.evaluation.markdown import markdown_grid, markdown_text
from mta.evaluation.marks import SIGNIFICANT, best_methods, is_proven, second_methods
from mta.evaluation.measures import MEASURES
from mta.evaluation.notes import (
    comparison_line,
    marks_line,
    method_notes,
    reading_line,
    rows_are,
    run_line,
    seeds_text,
)
from mta.evaluation.scores_file import COSTS, check_scores, finite, interval_of, shown_metrics

SLICES_LINE = (
    "Slices show where a difference may come from. They are small, their intervals are corrected for nothing, and "
    "differences between slices mix who is asked with what is asked."
)
MERGES_APART = "merge cat vs linear"
"""Line of a run card: how far the two merges are apart, mean over users."""


def markdown_table(scores: Mapping[str, Any]) -> str:
    """Write one run's scores as a Markdown table with a line on how to read it.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    scores = check_scores(scores)
    metrics, costs = shown_metrics(scores), shown_costs(scores)
    head = [markdown_text(rows_are(scores)), *map(metric_title, metrics), *(COST_TITLES[cost] for cost in costs)]
    rows = [
        [
            markdown_text(name),
            *(_score_cell(scores, name, metric) for metric in metrics),
            *(format_cost(cost, method.get(cost)) for cost in costs),
        ]
        for name, method in scores["methods"].items()
    ]
    notes = "".join(f"\n{markdown_text(note)}\n" for note in method_notes(scores))
    reading = f"{reading_line(scores)} {markdown_text(marks_line(scores, second='Italics'))}"
    return f"{markdown_text(run_line(scores))}\n\n{markdown_grid(head, rows)}\n\n{reading}\n{notes}"


def markdown_comparisons(scores: Mapping[str, Any]) -> str:
    """Write one run's paired comparisons as a Markdown table, or "" where it has none.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    found = comparison_rows(check_scores(scores))
    if not found:
        return ""
    head = ["comparison", "metric", "difference", "p", "p (Holm)"]
    rows = [
        [
            markdown_text(", ".join(filter(None, (f"{row['a']} - {row['b']}", row["role"])))),
            row["metric"],
            f"{row['difference']} {row['interval']}".strip(),
            row["p"],
            row["p_holm"],
        ]
        for row in found
    ]
    return f"{markdown_grid(head, rows)}\n\n{markdown_text(comparison_line(scores))}\n"


def markdown_slices(scores: Mapping[str, Any]) -> str:
    """Write one run's scores on slices as Markdown tables, one a partition, or "" where it has none.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    tables, unparted = slice_tables(check_scores(scores)), unparted_line(scores)
    parts = [f"{markdown_text(unparted)}\n"] if unparted else []
    for table in tables:
        head = ["method", *(markdown_text(f"{label}, {title}") for label in table.labels for title in table.metrics)]
        rows = [
            [markdown_text(name), *(f"{value} {interval}".strip() for value, interval in cells)]
            for name, cells in table.rows.items()
        ]
        sizes = markdown_text("; ".join(f"{label} ({size})" for label, size in table.labels.items()))
        parts.append(f"By {markdown_text(table.partition)}: {sizes}.\n\n{markdown_grid(head, rows)}\n")
    return "\n".join([*parts, *([f"{SLICES_LINE}\n"] if tables else [])])


@dataclass(frozen=True, slots=True)
class SliceTable:
    """All slices of one partition, as texts: the main metric and the NLL only."""

    partition: str
    labels: Mapping[str, str]
    """Label -> how many people and queries, in the order of the columns."""
    metrics: tuple[str, ...]
    """Titles of the columns under each label."""
    rows: Mapping[str, tuple[tuple[str, str], ...]]
    """Method -> (value, interval) of each label and metric."""


def slice_tables(scores: Mapping[str, Any]) -> list[SliceTable]:
    """Lay out the slices of a run, but for partitions that part nothing; [] where it has none."""
    shown = shown_metrics(scores)
    metrics = [*shown[:1], *(name for name in shown[1:] if name == "nll")]
    return [
        SliceTable(
            partition=str(partition),
            labels={str(label): _size(entry) for label, entry in entries.items()},
            metrics=tuple(map(metric_title, metrics)),
            rows={
                name: tuple(
                    _value_and_interval(entry["methods"].get(name, {"metrics": {}}), metric)
                    for entry in entries.values()
                    for metric in metrics
                )
                for name in scores["methods"]
            },
        )
        for partition, entries in (scores.get("slices") or {}).items()
        if len(entries) > 1
    ]


def unparted_line(scores: Mapping[str, Any]) -> str:
    """Say of the partitions that have a single slice what all queries are; "" where there are none."""
    found = [
        f"by {partition} all are one slice, {label}"
        for partition, entries in (scores.get("slices") or {}).items()
        if len(entries) == 1
        for label in entries
    ]
    return f"Not sliced: {'; '.join(found)}." if found else ""


def _size(entry: Mapping[str, Any]) -> str:
    return f"{count_text(entry['people'], 'person', 'people')}, {count_text(entry['queries'], 'query', 'queries')}"


def _value_and_interval(method: Mapping[str, Any], metric: str) -> tuple[str, str]:
    return format_score(finite(method["metrics"].get(metric))), format_interval(interval_of(method, metric))


def csv_table(scores: Mapping[str, Any]) -> str:
    """Write one run's scores as CSV: a row per method, columns METRIC, METRIC_low, METRIC_high and METRIC_seed_sd.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    scores = check_scores(scores)
    metrics = shown_metrics(scores)
    bounds = [f"{metric}{part}" for metric in metrics for part in ("", "_low", "_high", "_seed_sd")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["task", "base", "seeds", "people", "queries", "method", *bounds, *COSTS])
    start = [scores["task"], scores["base"], seeds_text(scores), scores["people"], scores["queries"]]
    for name, method in scores["methods"].items():
        values: list[Any] = []
        for metric in metrics:
            values += [finite(method["metrics"].get(metric)), *(interval_of(method, metric) or (None, None))]
            values += [finite((method.get("seed_sd") or {}).get(metric))]
        writer.writerow([*start, name, *values, *(finite(method.get(cost)) for cost in COSTS)])
    return stream.getvalue()


def seed_sd(method: Mapping[str, Any], metric: str) -> str:
    """Write the standard deviation of a score between seeds as "sd 0.012", or "" where there is none."""
    value = finite((method.get("seed_sd") or {}).get(metric))
    return "" if value is None else f"sd {format_score(value)}"


def comparison_rows(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the paired comparisons as texts: a, b, role of b, metric, difference, interval, p, p_holm, verdict."""
    return [
        {
            "a": str(row.get("a", "?")),
            "b": str(row.get("b", "?")),
            "role": _role(scores, row),
            "metric": metric_title(str(row.get("metric", "?"))),
            "difference": format_signed(finite(row.get("difference"))),
            "interval": format_signed_interval(row.get("ci95")),
            "p": format_p(finite(row.get("p_value"))),
            "p_holm": format_p(finite(row.get("p_holm"))),
            "verdict": _verdict(row),
        }
        for row in scores.get("comparisons") or ()
    ]


def _role(scores: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Say "best rival" where the second method is that of the first by this metric."""
    judged = scores.get("judged") or {"method": None, "best_rival": {}}
    is_best = row.get("a") == judged["method"] and row.get("b") == judged["best_rival"].get(row.get("metric"), "")
    return "best rival" if is_best else ""


def _verdict(row: Mapping[str, Any]) -> str:
    """Name the better method where both the interval and the test, corrected where it is, say so."""
    pair, measure = row.get("ci95"), MEASURES.get(str(row.get("metric")))
    p_value = finite(row.get("p_holm", row.get("p_value")))
    if not pair or measure is None:
        return "no interval"
    if pair[0] <= 0 <= pair[1] or p_value is None or p_value >= SIGNIFICANT:
        return "may be noise"
    return f"{row['a'] if (pair[0] > 0) == measure.higher_is_better else row['b']} better"


def shown_costs(scores: Mapping[str, Any]) -> list[str]:
    """List the costs to show: updates per user always, others where at least one method has a value."""
    methods = scores["methods"].values()
    return [
        cost
        for cost in COSTS
        if cost == "updates_per_user" or any(finite(method.get(cost)) is not None for method in methods)
    ]


def _score_cell(scores: Mapping[str, Any], name: str, metric: str) -> str:
    method = scores["methods"][name]
    shown = format_score(finite(method["metrics"].get(metric)))
    if name in best_methods(scores, metric):
        shown = f"**{shown}**"
    elif name in second_methods(scores, metric):
        shown = f"*{shown}*"
    if is_proven(scores, name, metric):
        shown += "\\*"
    return " ".join(filter(None, (shown, format_interval(interval_of(method, metric)), seed_sd(method, metric))))
