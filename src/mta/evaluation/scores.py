"""The content of `scores.json`: one run's methods, scored on the same queries.

`build_scores` makes it, `check_scores` reads it back with an error that names what is missing. Values that
are unknown are None; no number is NaN or infinite.

Example:
    >>> scores = build_scores("lamp-2", [record_of_base, record_of_mta], base="smollm2-135m", seeds=[42],
    ...                       metrics=["accuracy", "macro_f1"], labels=LABELS, comparisons=[("mta", "base")])
    >>> scores["methods"]["mta"]["metrics"]["accuracy"]
    0.53
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mta.baselines.simple import CONTROLS as SIMPLE_CONTROLS
from mta.errors import DataError, unknown_name
from mta.evaluation.statistics import (
    MEASURES,
    RESAMPLES,
    count_people,
    count_queries,
    paired_difference,
    require_same_queries,
    score_predictions,
)
from mta.records import Prediction

CONTROLS = (
    "base",
    *SIMPLE_CONTROLS,
    "classical",
    "population",
    "population-adapt",
    "random-anchors",
    "uniform-weights",
    "swapped-user",
)
"""Methods that show what is gained without personalization, or without the method's own idea."""
COSTS = ("updates_per_user", "adapter_bytes_per_user", "train_seconds", "predict_seconds")
COUNTS = ("cut_prompts", "cut_training_prompts")
HEADER = ("task", "base", "seeds", "people", "queries", "methods")


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """What one method answered, and what that cost; None where it is unknown."""

    name: str
    predictions: Sequence[Prediction]
    updates_per_user: float | None = None
    """Optimizer steps on the user's own data, mean over users."""
    adapter_bytes_per_user: float | None = None
    """Bytes kept for one user, mean over users."""
    train_seconds: float | None = None
    """Wall time of all training for this method."""
    predict_seconds: float | None = None
    """Wall time of all answers."""
    cut_prompts: int | None = None
    """Queries whose prompt was cut to fit the model."""
    cut_training_prompts: int | None = None
    """Training examples of this method whose prompt was cut to fit the model."""
    not_adapted: Mapping[str, int] = field(default_factory=dict)
    """Reason -> users who were answered without an adapter of their own, though the method has one."""


def build_scores(
    task: str,
    records: Sequence[MethodRecord],
    *,
    base: str,
    seeds: Sequence[int],
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    comparisons: Sequence[tuple[str, str]] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Score all methods of a run and put them into the form of `scores.json`.

    Args:
        task: task id, for example "lamp-2".
        records: one per method, in the order they are to be shown; all on the same queries.
        base: name of the base model.
        seeds: seeds of the training runs whose predictions are pooled here.
        metrics: official metrics of the task; label scores and NLL are added where predictions have them.
        labels: all labels of the task; empty for free text.
        people: user id -> person, where several user ids are one person.
        comparisons: pairs (a, b) of method names; each is compared by every metric both have.
        resamples: bootstrap draws of the intervals.
        seed: seed of the bootstrap and of the permutations.

    Raises:
        DataError: no methods, a method twice, or methods that answered different queries.
        NotFound: a metric or a compared method does not exist.
    """
    by_name = _by_name(records)
    first = records[0].predictions
    scored = {
        name: _method(record, metrics=metrics, labels=labels, people=people, resamples=resamples, seed=seed)
        for name, record in by_name.items()
    }
    for pair in comparisons:
        for name in pair:
            if name not in by_name:
                raise unknown_name("method to compare", name, by_name)
    return {
        "task": task,
        "base": base,
        "seeds": list(seeds),
        "people": count_people(first, people),
        "queries": count_queries(first),
        "methods": scored,
        "comparisons": [
            _comparison(by_name[a], by_name[b], metric, labels=labels, people=people, resamples=resamples, seed=seed)
            for a, b in comparisons
            for metric in MEASURES
            if metric in scored[a]["metrics"] and metric in scored[b]["metrics"]
        ],
    }


def _by_name(records: Sequence[MethodRecord]) -> dict[str, MethodRecord]:
    if not records:
        raise DataError("cannot build scores: no methods; predict with at least one method first")
    by_name: dict[str, MethodRecord] = {}
    for record in records:
        if record.name in by_name:
            raise DataError(f"method {record.name!r} is given twice; give each method one record")
        by_name[record.name] = record
        require_same_queries(
            records[0].predictions, record.predictions, names=(f"method {records[0].name!r}", f"method {record.name!r}")
        )
    return by_name


def _method(
    record: MethodRecord,
    *,
    metrics: Sequence[str],
    labels: Sequence[str],
    people: Mapping[str, str] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    scores = score_predictions(
        record.predictions, metrics=metrics, labels=labels, people=people, resamples=resamples, seed=seed
    )
    return {
        "metrics": {name: finite(value) for name, value in scores.metrics.items()},
        "ci95": {name: _finite_pair(pair) for name, pair in scores.ci95.items()},
        **{name: finite(getattr(record, name)) for name in (*COSTS, *COUNTS)},
        "not_adapted": dict(record.not_adapted),
    }


def _comparison(
    a: MethodRecord,
    b: MethodRecord,
    metric: str,
    *,
    labels: Sequence[str],
    people: Mapping[str, str] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    found = paired_difference(
        a.predictions, b.predictions, metric, labels=labels, people=people, resamples=resamples, seed=seed
    )
    return {
        "a": a.name,
        "b": b.name,
        "metric": metric,
        "difference": finite(found.difference),
        "ci95": _finite_pair(found.ci95),
        "p_value": finite(found.p_value),
        "people": found.people,
        "queries": found.queries,
    }


def finite(value: Any) -> float | int | None:
    """Return `value` where it is a finite number, else None: JSON has no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _finite_pair(pair: Sequence[float] | None) -> list[float] | None:
    if pair is None or not all(math.isfinite(value) for value in pair):
        return None
    return list(pair)


def check_scores(value: Any) -> dict[str, Any]:
    """Return `value` where it has the form of `scores.json`.

    Raises:
        DataError: a part is missing or of another kind; the message says which.
    """
    if not isinstance(value, Mapping):
        raise _unreadable(f"it is {type(value).__name__}, wanted an object")
    missing = [name for name in HEADER if name not in value]
    if missing:
        raise _unreadable(f"it has no {', '.join(missing)}")
    if not isinstance(value["methods"], Mapping) or not value["methods"]:
        raise _unreadable("'methods' is not an object with at least one method")
    for name, method in value["methods"].items():
        if not isinstance(method, Mapping) or not isinstance(method.get("metrics"), Mapping):
            raise _unreadable(f"method {name!r} has no 'metrics'")
        intervals = method.get("ci95") or {}
        if not isinstance(intervals, Mapping):
            raise _unreadable(f"'ci95' of method {name!r} is not an object")
        for metric, pair in intervals.items():
            _check_pair(pair, f"{metric!r} of method {name!r}")
        if not isinstance(method.get("not_adapted") or {}, Mapping):
            raise _unreadable(f"'not_adapted' of method {name!r} is not an object")
    comparisons = value.get("comparisons") or []
    if not isinstance(comparisons, Sequence) or not all(isinstance(row, Mapping) for row in comparisons):
        raise _unreadable("'comparisons' is not a list of objects")
    for row in comparisons:
        _check_pair(row.get("ci95"), f"the difference {row.get('a')!r} - {row.get('b')!r}")
    return dict(value)


def _check_pair(pair: Any, where: str) -> None:
    if pair is None or (isinstance(pair, list | tuple) and len(pair) == 2 and None not in map(finite, pair)):
        return
    raise _unreadable(f"the interval of {where} is {pair!r}, wanted [low, high] or null")


def _unreadable(why: str) -> DataError:
    return DataError(f"this is not the content of a scores.json: {why}; score the run again to write a new one")


def shown_metrics(scores: Mapping[str, Any]) -> list[str]:
    """List the metrics at least one method has a value for: those known here in their usual order, then others."""
    found = {
        name
        for method in scores["methods"].values()
        for name, value in method["metrics"].items()
        if finite(value) is not None
    }
    return [*(name for name in MEASURES if name in found), *sorted(found - set(MEASURES))]


def interval_of(method: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Return the interval of one metric of a method of `scores.json`, or None where it has none."""
    pair = (method.get("ci95") or {}).get(metric)
    return None if pair is None else (float(pair[0]), float(pair[1]))


def best_methods(scores: Mapping[str, Any], metric: str) -> set[str]:
    """Name the methods with the best point estimate to three decimals; none where fewer than two have one."""
    values = {
        name: round(value, 3)
        for name, method in scores["methods"].items()
        if (value := finite(method["metrics"].get(metric))) is not None
    }
    if len(values) < 2 or metric not in MEASURES:
        return set()
    best = (max if MEASURES[metric].higher_is_better else min)(values.values())
    return {name for name, value in values.items() if value == best}
