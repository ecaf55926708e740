"""Tables of `scores.json` as Markdown and CSV: methods as rows, each score beside its interval.

Example:
    >>> print(markdown_table(read_json(run / "scores.json")))
    lamp-2, base smollm2-135m, seed 42: 37 people, 153 queries.
    ...
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mta.evaluation.markdown import markdown_grid, markdown_text
from mta.evaluation.marks import SIGNIFICANT, best_methods, is_proven, judged_method, opponents_of, second_methods
from mta.evaluation.scores_file import COSTS, check_scores, finite, interval_of, shown_metrics
from mta.evaluation.statistics import MEASURES

DASH = "–"
SLICES_LINE = (
    "Slices show where a difference may come from. They are small, their intervals are corrected for nothing, and "
    "differences between slices mix who is asked with what is asked."
)
MERGES_APART = "merge cat vs linear"
"""Line of a run card: how far the two merges are apart, mean over users."""
COST_TITLES = {
    "updates_per_user": "updates / user",
    "adapter_bytes_per_user": "adapter / user",
    "shared_train_seconds": "shared training",
    "train_seconds": "users' training",
    "predict_seconds": "answer time",
}


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
    return f"{_count(entry['people'], 'person', 'people')}, {_count(entry['queries'], 'query', 'queries')}"


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
    start = [scores["task"], scores["base"], _seeds(scores), scores["people"], scores["queries"]]
    for name, method in scores["methods"].items():
        values: list[Any] = []
        for metric in metrics:
            values += [finite(method["metrics"].get(metric)), *(interval_of(method, metric) or (None, None))]
            values += [finite((method.get("seed_sd") or {}).get(metric))]
        writer.writerow([*start, name, *values, *(finite(method.get(cost)) for cost in COSTS)])
    return stream.getvalue()


def metric_name(name: str) -> str:
    """Return the short name of a metric, for example "Acc"."""
    return MEASURES[name].title if name in MEASURES else name


def metric_title(name: str) -> str:
    """Return the column title of a metric with an arrow towards better, for example "Acc ↑"."""
    if name not in MEASURES:
        return name
    return f"{metric_name(name)} {'↑' if MEASURES[name].higher_is_better else '↓'}"


def rows_are(scores: Mapping[str, Any]) -> str:
    """Say what the rows of the table are: methods, or in a sweep the values of its setting."""
    sweep = scores.get("sweep")
    return f"{sweep['over']}, {sweep['method']}" if isinstance(sweep, Mapping) else "method"


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
    """Say what the intervals and arrows mean."""
    intervals = (
        "Intervals: 95 %, percentile bootstrap that resamples people, not queries."
        if any(interval_of(method, metric) for method in scores["methods"].values() for metric in method["metrics"])
        else "No intervals: they resample people, and need at least two."
    )
    return f"{intervals} ↑ higher is better, ↓ lower is better."


def marks_line(scores: Mapping[str, Any], *, second: str) -> str:
    """Say what the marks mean; `second` is how the second best is shown, for example "Italics"."""
    marks = f"Bold: best point estimate. {second}: second best. Neither says more than that."
    name = judged_method(scores)
    if name is None:
        return marks
    if not any(opponents_of(scores, metric) for metric in shown_metrics(scores)):
        return f"{marks} No asterisks: they say that {name} beats the best rival and population, and need both."
    return (
        f"{marks} *: {name} beats both the best rival by that metric and population, each with a Holm-corrected "
        f"p < {SIGNIFICANT:.2f}; it is given to {name} only. Controls and other forms of {name} are no rivals."
    )


def method_notes(scores: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the table must know: what sd means, what was capped, chosen, not adapted, or cut."""
    notes = {
        "Trained on at most": capped_items(scores),
        "Chosen on users of the pool": chosen_on_pool(scores),
        "Not adapted": not_adapted(scores),
        "Prompts cut to fit the model": cut_prompts(scores),
    }
    return [*filter(None, [seeds_line(scores)]), *(f"{title}: {text}." for title, text in notes.items() if text)]


def seed_sd(method: Mapping[str, Any], metric: str) -> str:
    """Write the standard deviation of a score between seeds as "sd 0.012", or "" where there is none."""
    value = finite((method.get("seed_sd") or {}).get(metric))
    return "" if value is None else f"sd {format_score(value)}"


def seeds_line(scores: Mapping[str, Any]) -> str:
    """Say what the standard deviations are; "" where no method has several seeds."""
    several = any(method.get("seed_sd") for method in scores["methods"].values())
    return "sd: standard deviation between the scores of the seeds." if several else ""


def capped_items(scores: Mapping[str, Any]) -> str:
    """Say how many items of a history training sees at most; "" where it sees all, or it is not recorded."""
    settings = (scores.get("run") or {}).get("settings") or {}
    places = {"an anchor": (settings.get("bank") or {}).get("train"), "a target user": settings.get("adapt")}
    caps = {who: cap for who, train in places.items() if (cap := finite((train or {}).get("max_items")))}
    return " and ".join(f"{cap} history items of {who}" for who, cap in caps.items())


def chosen_on_pool(scores: Mapping[str, Any]) -> str:
    """Name the settings that methods chose on users of the pool, with their values (of several runs in order)."""
    parts = []
    for name, method in scores["methods"].items():
        found: dict[str, list[str]] = {}
        for run in method.get("chosen_on_pool") or ():
            for setting, value in run.items():
                found.setdefault(str(setting), []).append(f"{value:g}" if finite(value) is not None else str(value))
        if found:
            same = {setting: values[:1] if len({*values}) == 1 else values for setting, values in found.items()}
            parts.append(f"{name} " + ", ".join(f"{setting} {' / '.join(values)}" for setting, values in same.items()))
    return "; ".join(parts)


def not_adapted(scores: Mapping[str, Any]) -> str:
    """Name the methods that answered users without an adapter of their own, with how many and why; "" for none."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, method in scores["methods"].items():
        for why, count in (method.get("not_adapted") or {}).items():
            if number := finite(count):
                found.setdefault((str(why), int(number)), []).append(name)
    return "; ".join(
        f"{_count(number, 'user', 'users')} ({why}) of {', '.join(names)}" for (why, number), names in found.items()
    )


def cut_prompts(scores: Mapping[str, Any]) -> str:
    """Count by method the prompts that were too long for the model, in answering and in training; "" for none."""
    parts = []
    for name, method in scores["methods"].items():
        places = {"answering": method.get("cut_prompts"), "training": method.get("cut_training_prompts")}
        found = [f"{number:,} in {place}" for place, count in places.items() if (number := finite(count))]
        if found:
            parts.append(f"{name} {' and '.join(found)}")
    return "; ".join(parts)


def comparison_line(scores: Mapping[str, Any]) -> str:
    """Say how the paired comparisons were made, and over which of them their p-values are corrected."""
    rows = scores.get("comparisons") or ()
    start = (
        "Difference: first minus second on the same queries, with a 95 % interval that resamples people. p: two-sided "
        "paired permutation test over people"
    )
    if not all("p_holm" in row for row in rows):
        return f"{start}, not corrected for the number of comparisons ({len(rows)}).{_smallest_p(scores['people'], 1)}"
    sizes = Counter((row.get("a"), row.get("metric")) for row in rows)
    most = max(sizes.values(), default=0)
    return (
        f"{start}. p (Holm): corrected over all methods that the first is compared with by the same metric (up to "
        f"{most}); metrics are not mixed.{_smallest_p(scores['people'], most)}"
    )


def _smallest_p(people: Any, comparisons: int) -> str:
    """Say so where there are too few people for any difference to count: of 2^n signs two are the most extreme."""
    if not isinstance(people, int) or people < 2 or (smallest := comparisons * 2.0 ** (1 - people)) < SIGNIFICANT:
        return ""
    return (
        f" With {people} people and {comparisons} {'comparisons' if comparisons > 1 else 'comparison'} the smallest of "
        f"these p is {min(1.0, smallest):.3f} or more, however large the differences: nothing can count here."
    )


def comparison_rows(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the paired comparisons as texts: a, b, role of b, metric, difference, interval, p, p_holm, verdict."""
    return [
        {
            "a": str(row.get("a", "?")),
            "b": str(row.get("b", "?")),
            "role": _role(scores, row),
            "metric": metric_title(str(row.get("metric", "?"))),
            "difference": _signed(finite(row.get("difference"))),
            "interval": _signed_interval(row.get("ci95")),
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
    elif name in second_methods(scores, metric):
        shown = f"*{shown}*"
    if is_proven(scores, name, metric):
        shown += "\\*"
    return " ".join(filter(None, (shown, format_interval(interval_of(method, metric)), seed_sd(method, metric))))


def _seeds(scores: Mapping[str, Any]) -> str:
    seeds = scores["seeds"]
    return " ".join(map(str, seeds)) if isinstance(seeds, list | tuple) else str(seeds)


def _count(number: Any, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if isinstance(number, int) else f"{number} {many}"
