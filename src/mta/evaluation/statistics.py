"""Scores with intervals, and paired differences between two methods, where the unit is the person.

Queries of one person are not independent, so every interval resamples people and takes all queries of a
drawn person together. Scores stay pooled over queries, as the official ones are: a person with five queries
weighs five times as much as a person with one.

All measures are sums of per-query rows (see `mta.metrics`), so a bootstrap is one product of a matrix of
drawn counts with a matrix of per-person sums.

Example:
    >>> scores = score_predictions(predictions, metrics=["accuracy"], labels=["[1]", "[2]"])
    >>> scores.metrics["accuracy"], scores.ci95["accuracy"]
    (0.61, (0.52, 0.7))
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mta.errors import ConfigError, DataError, unknown_name
from mta.metrics import METRICS, Array, Metric, mean_of_sums, pooled_statistics
from mta.records import Prediction

logger = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

RESAMPLES = 2000
PERMUTATIONS = 10_000
CELLS_PER_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to read off predictions: a metric and the part of a `Prediction` it looks at."""

    name: str
    title: str
    higher_is_better: bool
    rows: Callable[[Sequence[Prediction], Sequence[str]], Array | None]
    """(N predictions, labels) -> (N, S) rows that may be summed, or None where the predictions lack the part."""
    value: Callable[[Array], Array]
    """(..., S) sums of rows -> (...) scores."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What one method scored."""

    metrics: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float] | None]
    """95 % percentile interval over people; None with fewer than two people."""
    people: int
    queries: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How much method `a` scored above method `b` on the same queries."""

    metric: str
    difference: float
    """Score of `a` minus score of `b`, in the metric's own unit; for errors and NLL a minus is a gain of `a`."""
    ci95: tuple[float, float] | None
    """95 % percentile interval over people; None with fewer than two people."""
    p_value: float
    """Two-sided paired permutation p-value over people, not corrected for other comparisons."""
    people: int
    queries: int


def _text_rows(metric: Metric, predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    golds = [prediction.gold for prediction in predictions]
    return pooled_statistics(metric, [prediction.text for prediction in predictions], golds, labels=labels)


def _label_rows(metric: Metric, predictions: Sequence[Prediction], labels: Sequence[str]) -> Array | None:
    chosen = [prediction.label for prediction in predictions if prediction.label is not None]
    if not _complete("label", len(chosen), len(predictions)):
        return None
    return pooled_statistics(metric, chosen, [prediction.gold for prediction in predictions], labels=labels)


def _nll_rows(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array | None:
    """(N, 2) rows of nats and answer tokens, whose sums give nats per token."""
    known = [
        (prediction.nll, prediction.nll_tokens)
        for prediction in predictions
        if prediction.nll is not None and math.isfinite(prediction.nll) and prediction.nll_tokens > 0
    ]
    return np.array(known, dtype=np.float64) if _complete("nll", len(known), len(predictions)) else None


def _complete(part: str, known: int, wanted: int) -> bool:
    """Tell whether all predictions have the part; a score over some of them would compare unequal queries."""
    if 0 < known < wanted:
        logger.warning("%s left out: only %d of %d predictions have a usable one", part, known, wanted)
    return known == wanted


def _on_text(metric: Metric) -> Measure:
    return Measure(
        metric.name,
        metric.title,
        metric.higher_is_better,
        lambda predictions, labels: _text_rows(metric, predictions, labels),
        metric.value,
    )


def _on_label(metric: Metric, title: str) -> Measure:
    return Measure(
        f"label_{metric.name}",
        title,
        metric.higher_is_better,
        lambda predictions, labels: _label_rows(metric, predictions, labels),
        metric.value,
    )


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        *(_on_text(metric) for metric in METRICS.values()),
        _on_label(METRICS["accuracy"], "label acc"),
        _on_label(METRICS["mae"], "label MAE"),
        Measure("nll", "NLL", False, _nll_rows, mean_of_sums),
    )
}


def measure_names(metrics: Sequence[str]) -> list[str]:
    """List what is measured for a task with these official metrics: they, label scores, and NLL."""
    extras = ["label_accuracy"] if {"accuracy", "mae"} & set(metrics) else []
    extras += ["label_mae"] if "mae" in metrics else []
    return list(dict.fromkeys([*metrics, *extras, "nll"]))


def find_measure(name: str) -> Measure:
    """Return the measure called `name`.

    Raises:
        NotFound: there is none; the message lists those that exist.
    """
    if name not in MEASURES:
        raise unknown_name("metric", name, MEASURES)
    return MEASURES[name]


def person_of(prediction: Prediction, people: Mapping[str, str] | None = None) -> str:
    """Return who answered: the person `people` names for the user id, else the user id itself."""
    return (people or {}).get(prediction.user_id, prediction.user_id)


def count_people(predictions: Sequence[Prediction], people: Mapping[str, str] | None = None) -> int:
    """Count distinct people."""
    return len({person_of(prediction, people) for prediction in predictions})


def count_queries(predictions: Sequence[Prediction]) -> int:
    """Count distinct queries; the same query answered under several seeds counts once."""
    return len({(prediction.user_id, prediction.query_id) for prediction in predictions})


def score_predictions(
    predictions: Sequence[Prediction],
    *,
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score one method's predictions, with intervals that resample people.

    Besides the named metrics it gives the accuracy of the highest-scoring label (`label_accuracy`), its error
    for ratings (`label_mae`) and `nll`, each where all predictions carry what it needs. Predictions of several
    seeds may be given together: they are pooled, and a person is drawn with all seeds.

    Args:
        predictions: answers of one method, each with its gold answer.
        metrics: official metrics of the task, names from `METRICS`.
        labels: all labels of the task; empty for free text.
        people: user id -> person, for files in which several user ids are one person; others stand for themselves.
        resamples: bootstrap draws.
        seed: seed of the draws.

    Raises:
        NotFound: a metric does not exist.
        DataError: no predictions, or a gold answer a metric cannot use.
        ConfigError: `resamples` is below 1.
    """
    table = _rows(predictions, measure_names(metrics), labels)
    names, rows = list(table), list(table.values())
    sums = _sums_by_person(np.concatenate(rows, axis=1), _person_index(predictions, people))
    widths = [array.shape[1] for array in rows]
    points = _split_values(names, sums.sum(axis=0), widths)
    intervals = _intervals(names, sums, widths, resamples=resamples, seed=seed)
    return Scores(
        metrics={name: float(points[name]) for name in names},
        ci95=intervals,
        people=len(sums),
        queries=count_queries(predictions),
    )


def _rows(predictions: Sequence[Prediction], names: Sequence[str], labels: Sequence[str]) -> dict[str, Array]:
    if not predictions:
        raise DataError("cannot score: no predictions; a score needs at least one query with a gold answer")
    found = {name: find_measure(name).rows(predictions, labels) for name in names}
    return {name: rows for name, rows in found.items() if rows is not None}


def _person_index(predictions: Sequence[Prediction], people: Mapping[str, str] | None) -> IntArray:
    """(N,) position of each prediction's person, 0 to P - 1 in order of appearance."""
    index: dict[str, int] = {}
    return np.array([index.setdefault(person_of(prediction, people), len(index)) for prediction in predictions])


def _sums_by_person(rows: Array, person: IntArray) -> Array:
    """(N, S) rows of queries -> (P, S) sums of people."""
    sums = np.zeros((int(person.max()) + 1, rows.shape[1]))
    np.add.at(sums, person, rows)
    return sums


def _split_values(names: Sequence[str], sums: Array, widths: Sequence[int]) -> dict[str, Array]:
    """Cut (..., sum of widths) sums into the measures' parts and read each as a score."""
    parts = np.split(sums, np.cumsum(widths)[:-1], axis=-1)
    return {name: MEASURES[name].value(part) for name, part in zip(names, parts, strict=True)}


def _intervals(
    names: Sequence[str], sums: Array, widths: Sequence[int], *, resamples: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    if len(sums) < 2:
        return dict.fromkeys(names)
    values = _split_values(names, _resampled_sums(sums, resamples=resamples, seed=seed), widths)
    return {name: _percentile_interval(values[name]) for name in names}


def _resampled_sums(sums: Array, *, resamples: int, seed: int) -> Array:
    """(P, S) sums of people -> (R, S) sums over P people drawn with replacement, R times."""
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; it must be 1 or more")
    rng = np.random.default_rng(seed)
    chances = np.full(len(sums), 1 / len(sums))
    blocks = [
        rng.multinomial(len(sums), chances, size=size).astype(np.float64) @ sums
        for size in _block_sizes(resamples, len(sums))
    ]
    return np.concatenate(blocks)


def _block_sizes(total: int, width: int) -> Iterator[int]:
    """Cut `total` rows of `width` numbers into blocks that stay small in memory."""
    size = max(1, CELLS_PER_BLOCK // width)
    for start in range(0, total, size):
        yield min(size, total - start)


def _percentile_interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    metric: str,
    *,
    labels: Sequence[str] = (),
    people: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same queries, person by person.

    The difference is that of the two pooled scores. Its interval draws people, with both methods' answers
    together. Its p-value asks how often a difference at least as large in size appears when, for each person
    anew, a coin decides which answers are called `a` and which `b`: all 2^people ways where they are no more
    than `permutations`, else that many random ones (counting the observed one, so p is never 0).

    Args:
        a, b: predictions of two methods for the same queries, in any order; repeated queries (several seeds)
            are paired in order of appearance.
        metric: a name from `MEASURES`.
        labels: all labels of the task; empty for free text.
        people: user id -> person; users not in it stand for themselves.
        resamples: bootstrap draws.
        permutations: most coin-flip assignments tried.
        seed: seed of draws and flips.

    Raises:
        NotFound: the metric does not exist.
        DataError: the two answer different queries or have different golds, or one lacks what the metric needs.
        ConfigError: `resamples` or `permutations` is below 1.
    """
    a, b = _pair(a, b)
    value = find_measure(metric).value
    rows_a, rows_b = (_needed_rows(predictions, metric, labels) for predictions in (a, b))
    person = _person_index(a, people)
    sums_a, sums_b = _sums_by_person(rows_a, person), _sums_by_person(rows_b, person)
    observed = float(value(sums_a.sum(axis=0)) - value(sums_b.sum(axis=0)))
    interval = None
    if len(sums_a) > 1:
        drawn = _resampled_sums(np.concatenate([sums_a, sums_b], axis=1), resamples=resamples, seed=seed)
        half_a, half_b = np.split(drawn, 2, axis=1)
        interval = _percentile_interval(np.asarray(value(half_a) - value(half_b)))
    p_value = _swap_p_value(sums_a, sums_b, value, permutations=permutations, seed=seed)
    return Difference(metric, observed, interval, p_value, len(sums_a), count_queries(a))


def _needed_rows(predictions: Sequence[Prediction], metric: str, labels: Sequence[str]) -> Array:
    rows = _rows(predictions, [metric], labels).get(metric)
    if rows is None:
        raise DataError(
            f"cannot compare by {metric}: at least one prediction has none (a method without a model, or a value "
            "that is not finite); compare by another metric"
        )
    return rows


def _pair(a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[Sequence[Prediction], Sequence[Prediction]]:
    """Put both in one order."""
    keyed_a, keyed_b = _by_query(a), _by_query(b)
    require_same_queries(a, b, names=("a", "b"))
    return list(keyed_a.values()), [keyed_b[key] for key in keyed_a]


def _by_query(predictions: Sequence[Prediction]) -> dict[tuple[str, str, int], Prediction]:
    """Key each prediction by user, query and how often that query came before (several seeds repeat it)."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed = {}
    for prediction in predictions:
        query = (prediction.user_id, prediction.query_id)
        keyed[(*query, seen[query])] = prediction
        seen[query] += 1
    return keyed


def require_same_queries(a: Sequence[Prediction], b: Sequence[Prediction], *, names: tuple[str, str]) -> None:
    """Check that two methods answered the same queries, equally often, with the same gold answers.

    Raises:
        DataError: they did not; the message names one query that differs.
    """
    keyed_a, keyed_b = _by_query(a), _by_query(b)
    odd = sorted(keyed_a.keys() ^ keyed_b.keys())
    if odd:
        user_id, query_id, _ = odd[0]
        raise DataError(
            f"{names[0]} and {names[1]} answered different queries: {len(a)} and {len(b)} answers, and query "
            f"{query_id!r} of user {user_id!r} is not in both; scores are comparable on equal queries only, "
            "so predict the missing ones or leave them out of both"
        )
    for key, prediction in keyed_a.items():
        if prediction.gold != keyed_b[key].gold:
            raise DataError(
                f"{names[0]} and {names[1]} have different gold answers for query {key[1]!r} of user {key[0]!r}; "
                "they were run on different data - run both on the same files"
            )


def _swap_p_value(
    sums_a: Array, sums_b: Array, value: Callable[[Array], Array], *, permutations: int, seed: int
) -> float:
    """Share of ways to swap the two methods' answers within people that give a difference this large."""
    if permutations < 1:
        raise ConfigError(f"permutations is {permutations}; it must be 1 or more")
    count, change = len(sums_a), sums_b - sums_a
    total_a, total_b = sums_a.sum(axis=0), sums_b.sum(axis=0)
    limit = abs(float(value(total_a) - value(total_b)))
    limit -= 1e-9 * max(1.0, limit)  # sums in another order differ in the last bits; a tie counts
    as_large = tried = 0
    for swaps in _swaps(count, permutations, seed):
        moved = swaps @ change
        differences = np.abs(value(total_a + moved) - value(total_b - moved))
        as_large += int((differences >= limit).sum())
        tried += len(swaps)
    exact = tried == 2**count
    return as_large / tried if exact else (as_large + 1) / (tried + 1)


def _swaps(count: int, permutations: int, seed: int) -> Iterator[Array]:
    """Yield blocks (n, count) of 0 and 1: all of them where they are few, else random ones."""
    if 2**count <= permutations:
        yield ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(np.float64)
        return
    rng = np.random.default_rng([seed, 1])  # apart from the stream of the bootstrap
    for size in _block_sizes(permutations, count):
        yield rng.integers(0, 2, size=(size, count)).astype(np.float64)
