"""The content of `scores.json`: one run's methods, scored on the same queries.

`build_scores` makes it; `scores_file` reads it back. Values that are unknown are None; no number is NaN or infinite.

Example:
    >>> scores = build_scores("lamp-2", [record_of_base, record_of_mta], base="smollm2-135m", seeds=[42],
    ...                       metrics=["accuracy", "macro_f1"], labels=LABELS, judged="mta")
    >>> scores["methods"]["mta"]["metrics"]["accuracy"]
    0.53
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mta.baselines.roles import POPULATION, is_rival
from mta.errors import DataError, unknown_name
from mta.evaluation.measures import MEASURES
from mta.evaluation.scores_file import COSTS, finite
from mta.evaluation.statistics import (
    RESAMPLES,
    Scores,
    count_people,
    count_queries,
    holm,
    paired_difference,
    require_same_queries,
    score_predictions,
    standard_deviation,
)
from mta.records import Prediction

COUNTS = ("cut_prompts", "cut_training_prompts")


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """What one method answered, and what that cost; None where it is unknown."""

    name: str
    predictions: Sequence[Prediction]
    """One answer a query and seed; a method that does not depend on a seed gives one answer a query."""
    seed_of: Sequence[int] | None = None
    """Seed of the training run behind each prediction, or None where there is none or it is unknown."""
    updates_per_user: float | None = None
    """Optimizer steps on the user's own data, mean over users."""
    adapter_bytes_per_user: float | None = None
    """Bytes kept for one user, mean over users."""
    train_seconds: float | None = None
    """Wall time of the training for each of the users."""
    shared_train_seconds: float | None = None
    """Wall time of the training on the pool that the method stands on, whichever other methods do too."""
    predict_seconds: float | None = None
    """Wall time of all answers."""
    cut_prompts: int | None = None
    """Queries whose prompt was cut to fit the model."""
    cut_training_prompts: int | None = None
    """Training examples of this method whose prompt was cut to fit the model."""
    not_adapted: Mapping[str, int] = field(default_factory=dict)
    """Reason -> users who were answered without an adapter of their own, though the method has one."""
    chosen_by_users: Sequence[Mapping[str, int]] = ()
    """One entry for each of the repeated runs: way to serve -> how many users' own histories have chosen it."""
    chosen_on_pool: Sequence[Mapping[str, float]] = ()
    """Setting -> the value that the method chose on users of the pool; one mapping for each of the repeated runs."""


def build_scores(
    task: str,
    records: Sequence[MethodRecord],
    *,
    base: str,
    seeds: Sequence[int],
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    judged: str | None = None,
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
        judged: the method in question; it is compared with every other one, and its gain over the best rival and
            the population adapter is what the asterisks of the tables are about.
        comparisons: further pairs (a, b) of method names; every pair is compared by every metric both have.
        resamples: bootstrap draws of the intervals.
        seed: seed of the bootstrap and of the permutations.

    Raises:
        DataError: no methods, a method twice, or methods that answered different queries or with different seeds.
        NotFound: a metric or a compared method does not exist.
    """
    by_name = _by_name(records)
    first = records[0].predictions
    scored = {
        name: _method(record, metrics=metrics, labels=labels, people=people, resamples=resamples, seed=seed)
        for name, record in by_name.items()
    }
    rows = [
        _comparison(by_name[a], by_name[b], metric, labels=labels, people=people, resamples=resamples, seed=seed)
        for a, b in _pairs(by_name, judged, comparisons)
        for metric in MEASURES
        if metric in scored[a]["metrics"] and metric in scored[b]["metrics"]
    ]
    return {
        "task": task,
        "base": base,
        "seeds": list(seeds),
        "people": count_people(first, people),
        "queries": count_queries(first),
        "methods": scored,
        "judged": None if judged is None else _opponents(scored, judged),
        "comparisons": _corrected(rows),
        "slices": {},
    }


def _by_name(records: Sequence[MethodRecord]) -> dict[str, MethodRecord]:
    if not records:
        raise DataError("cannot build scores: no methods; predict with at least one method first")
    by_name: dict[str, MethodRecord] = {}
    for record in records:
        if record.name in by_name:
            raise DataError(f"method {record.name!r} is given twice; give each method one record")
        by_name[record.name] = record
    fullest = max(records, key=lambda record: len(record.predictions))
    for record in records:
        require_same_queries(
            fullest.predictions, record.predictions, names=(f"method {fullest.name!r}", f"method {record.name!r}")
        )
    _require_same_seeds(records)
    return by_name


def _require_same_seeds(records: Sequence[MethodRecord]) -> None:
    """Check that methods with several answers a query have them from the same seeds."""
    several = [record for record in records if len(record.predictions) > count_queries(record.predictions)]
    for record in several:
        mine, first = (sorted(set(one.seed_of or ())) for one in (record, several[0]))
        if mine != first:
            raise DataError(
                f"method {several[0].name!r} has the seeds {first} and method {record.name!r} has {mine}; wanted the "
                "same seeds, or one - answer with the missing ones"
            )


def _pairs(
    known: Mapping[str, Any], judged: str | None, comparisons: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """List whom to compare with whom, each pair once."""
    for name in [*([] if judged is None else [judged]), *(name for pair in comparisons for name in pair)]:
        if name not in known:
            raise unknown_name("method to compare", name, known)
    everybody = [] if judged is None else [(judged, name) for name in known if name != judged]
    return list(dict.fromkeys([*everybody, *comparisons]))


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom one method is compared with by one metric."""

    method: str
    metric: str
    others: tuple[str, ...]
    """Every other method that has the metric, in the order of the table."""
    best_rival: str | None
    """The rival with the best point estimate, the first of equals; None where no rival has the metric."""
    population: str | None
    """The population adapter, or None where it is not in the table."""


def planned_comparisons(scored: Mapping[str, Mapping[str, Any]], metric: str, *, method: str) -> Plan:
    """Say whom `method` is compared with by one metric, and name the two it must beat.

    Args:
        scored: method -> its entry in `scores.json`.
        metric: a name from `MEASURES`.
        method: the method in question.

    Raises:
        NotFound: there is no such method.
    """
    if method not in scored:
        raise unknown_name("method to compare", method, scored)
    values = {
        name: value
        for name, entry in scored.items()
        if name != method and (value := finite(entry["metrics"].get(metric))) is not None
    }
    rivals = [name for name in values if is_rival(name, method)]
    best = max if MEASURES[metric].higher_is_better else min
    return Plan(
        method=method,
        metric=metric,
        others=tuple(values),
        best_rival=best(rivals, key=lambda name: values[name]) if rivals else None,
        population=POPULATION if POPULATION in values else None,
    )


def _opponents(scored: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, Any]:
    plans = [planned_comparisons(scored, metric, method=method) for metric in scored[method]["metrics"]]
    return {
        "method": method,
        "population": POPULATION if POPULATION in scored and method != POPULATION else None,
        "best_rival": {plan.metric: plan.best_rival for plan in plans},
    }


def _corrected(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each comparison its p-value corrected over the family: the same `a` and metric, whoever `b` is."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row["a"], row["metric"]), []).append(place)
    p_holm = {
        place: value
        for places in families.values()
        for place, value in zip(places, holm([rows[place]["p_value"] for place in places]), strict=True)
    }
    return [{**row, "p_holm": p_holm[place]} for place, row in enumerate(rows)]


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
        record.predictions,
        metrics=metrics,
        labels=labels,
        people=people,
        seed_of=record.seed_of,
        resamples=resamples,
        seed=seed,
    )
    apart = {name: standard_deviation(values) for name, values in scores.by_seed.items()}
    return {
        **points(scores),
        "seeds": list(scores.seeds),
        "by_seed": {name: list(map(finite, values)) for name, values in scores.by_seed.items()},
        "seed_sd": {name: finite(value) for name, value in apart.items()} if len(scores.seeds) > 1 else None,
        **{name: finite(getattr(record, name)) for name in (*COSTS, *COUNTS)},
        "not_adapted": dict(record.not_adapted),
        "chosen_on_pool": [dict(chosen) for chosen in record.chosen_on_pool if chosen],
        "chosen_by_users": [dict(chosen) for chosen in record.chosen_by_users if chosen],
    }


def points(scores: Scores) -> dict[str, Any]:
    """Return the scores and intervals in the form of the file."""
    return {
        "metrics": {name: finite(value) for name, value in scores.metrics.items()},
        "ci95": {name: _finite_pair(pair) for name, pair in scores.ci95.items()},
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


def _finite_pair(pair: Sequence[float] | None) -> list[float] | None:
    if pair is None or not all(math.isfinite(value) for value in pair):
        return None
    return list(pair)
