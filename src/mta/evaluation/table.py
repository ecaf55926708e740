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
from typing import Any

from mta.evaluation.scores import COSTS, best_methods, check_scores, finite, interval_of, shown_metrics
from mta.evaluation.statistics import MEASURES

DASH = "–"
MERGES_APART = "merge cat vs linear"
"""Line of a run card: how far the two merges are apart, mean over users."""
SIGNIFICANT = 0.05
COST_TITLES = {
    "updates_per_user": "updates / user",
    "adapter_bytes_per_user": "adapter / user",
    "train_seconds": "training time",
    "predict_seconds": "answer time",
}


def markdown_table(scores: Mapping[str, Any]) -> str:
    """Write one run's scores as a Markdown table with a line on how to read it.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    scores = check_scores(scores)
    metrics, costs = shown_metrics(scores), shown_costs(scores)
    head = ["method", *map(metric_title, metrics), *(COST_TITLES[cost] for cost in costs)]
    rows = [
        [
            _escape(name),
            *(_score_cell(scores, name, metric) for metric in metrics),
            *(format_cost(cost, method.get(cost)) for cost in costs),
        ]
        for name, method in scores["methods"].items()
    ]
    notes = "".join(f"\n{_escape(note)}\n" for note in method_notes(scores))
    return f"{_escape(run_line(scores))}\n\n{_grid(head, rows)}\n\n{reading_line(scores)}\n{notes}"


def markdown_comparisons(scores: Mapping[str, Any]) -> str:
    """Write one run's paired comparisons as a Markdown table, or "" where it has none.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    found = comparison_rows(check_scores(scores))
    if not found:
        return ""
    head = ["comparison", "metric", "difference", "p"]
    rows = [
        [_escape(f"{row['a']} - {row['b']}"), row["metric"], f"{row['difference']} {row['interval']}".strip(), row["p"]]
        for row in found
    ]
    return f"{_grid(head, rows)}\n\n{comparison_line(len(found))}\n"


def csv_table(scores: Mapping[str, Any]) -> str:
    """Write one run's scores as CSV: a row per method, columns METRIC, METRIC_low and METRIC_high.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    scores = check_scores(scores)
    metrics = shown_metrics(scores)
    bounds = [column for metric in metrics for column in (metric, f"{metric}_low", f"{metric}_high")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["task", "base", "seeds", "people", "queries", "method", *bounds, *COSTS])
    start = [scores["task"], scores["base"], _seeds(scores), scores["people"], scores["queries"]]
    for name, method in scores["methods"].items():
        values: list[Any] = []
        for metric in metrics:
            values += [finite(method["metrics"].get(metric)), *(interval_of(method, metric) or (None, None))]
        writer.writerow([*start, name, *values, *(finite(method.get(cost)) for cost in COSTS)])
    return stream.getvalue()


def metric_title(name: str) -> str:
    """Return the column title of a metric with an arrow towards better, for example "Acc ↑"."""
    if name not in MEASURES:
        return name
    return f"{MEASURES[name].title} {'↑' if MEASURES[name].higher_is_better else '↓'}"


def run_line(scores: Mapping[str, Any]) -> str:
    """Say which run this is and how much stands behind it."""
    return f"{scores['task']}, {basis_line(scores)}"


def basis_line(scores: Mapping[str, Any]) -> str:
    """Say how much stands behind a run: base model, seeds, people, queries."""
    seeds = _seeds(scores)
    seed_text = "" if not seeds else f", seed {seeds}" if " " not in seeds else f", seeds {seeds}"
    return (
        f"base {scores['base']}{seed_text}: "
        f"{_count(scores['people'], 'person', 'people')}, {_count(scores['queries'], 'query', 'queries')}."
    )


def reading_line(scores: Mapping[str, Any]) -> str:
    """Say what the intervals, arrows and bold numbers mean."""
    intervals = (
        "Intervals: 95 %, percentile bootstrap that resamples people, not queries."
        if any(interval_of(method, metric) for method in scores["methods"].values() for metric in method["metrics"])
        else "No intervals: they resample people, and need at least two."
    )
    return f"{intervals} ↑ higher is better, ↓ lower is better. Bold: best point estimate, no more."


def method_notes(scores: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the table must know: who was not adapted, whose prompts were cut; [] for nothing."""
    notes = {"Not adapted": not_adapted(scores), "Prompts cut to fit the model": cut_prompts(scores)}
    return [f"{title}: {text}." for title, text in notes.items() if text]


def not_adapted(scores: Mapping[str, Any]) -> str:
    """Name the methods that answered users without an adapter of their own, with how many and why; "" for none."""
    parts = []
    for name, method in scores["methods"].items():
        reasons = {
            str(why): number for why, count in (method.get("not_adapted") or {}).items() if (number := finite(count))
        }
        if reasons:
            listed = ", ".join(f"{why}: {number}" if len(reasons) > 1 else why for why, number in reasons.items())
            parts.append(f"{name} {_count(sum(reasons.values()), 'user', 'users')} ({listed})")
    return "; ".join(parts)


def cut_prompts(scores: Mapping[str, Any]) -> str:
    """Count by method the prompts that were too long for the model, in answering and in training; "" for none."""
    parts = []
    for name, method in scores["methods"].items():
        places = {"answering": method.get("cut_prompts"), "training": method.get("cut_training_prompts")}
        found = [f"{number:,} in {place}" for place, count in places.items() if (number := finite(count))]
        if found:
            parts.append(f"{name} {' and '.join(found)}")
    return "; ".join(parts)


def comparison_line(count: int) -> str:
    """Say how the paired comparisons were made."""
    return (
        "Difference: first minus second on the same queries, with a 95 % interval that resamples people. p: two-sided "
        f"paired permutation test over people, not corrected for the number of comparisons ({count})."
    )


def comparison_rows(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the paired comparisons as texts: a, b, metric, difference, interval, p, verdict."""
    return [
        {
            "a": str(row.get("a", "?")),
            "b": str(row.get("b", "?")),
            "metric": metric_title(str(row.get("metric", "?"))),
            "difference": _signed(finite(row.get("difference"))),
            "interval": _signed_interval(row.get("ci95")),
            "p": format_p(finite(row.get("p_value"))),
            "verdict": _verdict(row),
        }
        for row in scores.get("comparisons") or ()
    ]


def _verdict(row: Mapping[str, Any]) -> str:
    """Name the better method where both the interval and the test say so."""
    pair, p_value, measure = row.get("ci95"), finite(row.get("p_value")), MEASURES.get(str(row.get("metric")))
    if not pair or measure is None:
        return "no interval"
    if pair[0] <= 0 <= pair[1] or p_value is None or p_value >= SIGNIFICANT:
        return "may be noise"
    return f"{row['a'] if (pair[0] > 0) == measure.higher_is_better else row['b']} better"


def format_score(value: float | None) -> str:
    """Write a score to three decimals, large ones to four digits."""
    if value is None:
        return DASH
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def format_interval(pair: tuple[float, float] | None) -> str:
    """Write an interval as "[low, high]", or "" where there is none."""
    return "" if pair is None else f"[{format_score(pair[0])}, {format_score(pair[1])}]"


def format_p(value: float | None) -> str:
    """Write a p-value to three decimals."""
    if value is None:
        return DASH
    return "< .001" if value < 0.001 else f"{value:.3f}"


def format_cost(cost: str, value: Any) -> str:
    """Write a cost of `scores.json` with its unit, or a dash where it is unknown."""
    number = finite(value)
    if number is None:
        return DASH
    if cost == "adapter_bytes_per_user":
        return _bytes(number)
    if cost.endswith("_seconds"):
        return _duration(number)
    return f"{number:,.1f}".removesuffix(".0")


def shown_costs(scores: Mapping[str, Any]) -> list[str]:
    """List the costs to show: updates per user always, others where at least one method has a value."""
    methods = scores["methods"].values()
    return [
        cost
        for cost in COSTS
        if cost == "updates_per_user" or any(finite(method.get(cost)) is not None for method in methods)
    ]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _duration(seconds: float) -> str:
    if 0 < seconds < 0.1:
        return "< 0.1 s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.3f}"


def _signed_interval(pair: Any) -> str:
    return "" if not pair else f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"


def _score_cell(scores: Mapping[str, Any], name: str, metric: str) -> str:
    method = scores["methods"][name]
    shown = format_score(finite(method["metrics"].get(metric)))
    if name in best_methods(scores, metric):
        shown = f"**{shown}**"
    return f"{shown} {format_interval(interval_of(method, metric))}".strip()


def _grid(head: list[str], rows: list[list[str]]) -> str:
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, align, *rows])


def _escape(text: Any) -> str:
    """Keep a name from breaking the table: no pipes, line breaks, tags or emphasis."""
    flat = " ".join(str(text).split())
    for mark in ("\\", "|", "*", "_", "`", "<", "["):
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def _seeds(scores: Mapping[str, Any]) -> str:
    seeds = scores["seeds"]
    return " ".join(map(str, seeds)) if isinstance(seeds, list | tuple) else str(seeds)


def _count(number: Any, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if isinstance(number, int) else f"{number} {many}"
