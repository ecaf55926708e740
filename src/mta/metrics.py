"""The official LaMP metrics, pooled over queries.

A metric is two functions. `statistics` turns each query into a row of numbers that may be added up, and
`value` turns a sum of rows into the score. Pooling is the sum over all queries; a bootstrap is the sum over
resampled people, so no metric ever has to look at a text twice. This file knows texts only: no people, no
intervals, no tasks.

Both sides are stripped before they are compared. Nothing else is repaired here: what a task cuts out of a
completion has happened before.

Example:
    >>> score(["accuracy", "macro_f1"], ["[1]", "[1]"], ["[1]", "[2]"], labels=["[1]", "[2]"])
    {'accuracy': 0.5, 'macro_f1': 0.3333333333333333}
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mta.errors import DataError, unknown_name

Array = NDArray[np.float64]

RATING_RANGE = (1.0, 5.0)
LARGEST_RATING = 1e100


@dataclass(frozen=True, slots=True)
class Metric:
    """One score: how to count a query, and how to read the sum of the counts."""

    name: str
    title: str
    """Short name for the head of a table column."""
    higher_is_better: bool
    statistics: Callable[[Sequence[str], Sequence[str], Sequence[str]], Array]
    """(predictions, golds, labels), N texts each and L labels -> (N, S) rows that may be summed."""
    value: Callable[[Array], Array]
    """(..., S) sums of rows -> (...) scores."""


def score(
    metric_names: Sequence[str], predictions: Sequence[str], golds: Sequence[str], *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """Score predictions against gold answers, pooled over all queries.

    Args:
        metric_names: names from `METRICS`.
        predictions: N answers, after the task's clean-up.
        golds: N true answers, in the same order.
        labels: all labels of the task, also those that occur nowhere; empty for free text.

    Raises:
        NotFound: a metric does not exist.
        DataError: nothing to score, unequal lengths, or a gold answer the metric cannot use.
    """
    return {
        name: float(metric.value(pooled_statistics(metric, predictions, golds, labels=labels).sum(axis=0)))
        for name, metric in ((name, find_metric(name)) for name in metric_names)
    }


def find_metric(name: str) -> Metric:
    """Return the metric called `name`.

    Raises:
        NotFound: there is none; the message lists those that exist.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def pooled_statistics(
    metric: Metric, predictions: Sequence[str], golds: Sequence[str], *, labels: Sequence[str] = ()
) -> Array:
    """Count every query once: (N, S) rows of `metric`, in the order of the predictions.

    Raises:
        DataError: nothing to score, unequal lengths, or a gold answer the metric cannot use.
    """
    if len(predictions) != len(golds):
        raise DataError(
            f"cannot score: {len(predictions)} predictions but {len(golds)} gold answers; "
            "give one gold answer for each prediction, in the same order"
        )
    if not golds:
        raise DataError("cannot score: no predictions; a score needs at least one query with a gold answer")
    return metric.statistics([text.strip() for text in predictions], [text.strip() for text in golds], labels)


def _check_golds(golds: Sequence[str], labels: Sequence[str]) -> None:
    unknown = sorted(set(golds) - set(labels))
    if unknown:
        raise DataError(
            f"gold answer {unknown[0]!r} is not one of the task's labels ({', '.join(labels)}); "
            "correct the data file, or choose the task it belongs to"
        )


def _with_count(values: Sequence[float]) -> Array:
    """(N,) values -> (N, 2) rows of value and 1, whose sums give a mean."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)


def mean_of_sums(sums: Array) -> Array:
    """Read (..., 2) sums of (value, count) as means (...); NaN where the count is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _root_of_sums(sums: Array) -> Array:
    return np.asarray(np.sqrt(mean_of_sums(sums)))


def _accuracy(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    if labels:
        _check_golds(golds, labels)
    return _with_count([float(text == gold) for text, gold in zip(predictions, golds, strict=True)])


def _confusion(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    """(N, 3 L): true positives, false positives and misses of each label.

    An answer that is no label is a miss for its gold label and a false positive for nobody.
    """
    if not labels:
        raise DataError("macro_f1 needs the task's list of labels, got none; name them, or use another metric")
    _check_golds(golds, labels)
    column = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(golds), 3, len(labels)))
    for row, (text, gold) in enumerate(zip(predictions, golds, strict=True)):
        if text == gold:
            counts[row, 0, column[gold]] = 1
            continue
        counts[row, 2, column[gold]] = 1
        if text in column:
            counts[row, 1, column[text]] = 1
    return counts.reshape(len(golds), -1)


def _macro_f1(sums: Array) -> Array:
    """Mean over ALL labels of F1 = 2 tp / (2 tp + fp + fn); a label that occurs nowhere counts 0."""
    hits, alarms, misses = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    found = 2 * hits + alarms + misses
    return np.asarray((2 * hits / np.where(found > 0, found, 1)).mean(axis=-1))


def parse_rating(text: str) -> float | None:
    """Read a rating as a number, or return None where it is not one.

    Neither clipped nor rounded: "7" is 7 and "1e5" is 100000, as in the official evaluation. "nan", "inf" and
    numbers beyond 1e100 are no ratings: one of them would turn the score of everybody into NaN.
    """
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= LARGEST_RATING else None


def _rating_range(labels: Sequence[str]) -> tuple[float, float]:
    values = [value for value in map(parse_rating, labels) if value is not None]
    return (min(values), max(values)) if values else RATING_RANGE


def _rating_errors(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> list[float]:
    """Absolute errors; an answer that is no number counts as the extreme farther from gold (the top on a tie)."""
    low, high = _rating_range(labels)
    errors = []
    for text, gold in zip(predictions, golds, strict=True):
        truth = parse_rating(gold)
        if truth is None:
            raise DataError(f"gold rating {gold!r} is not a number; correct the data file")
        answer = parse_rating(text)
        if answer is None:
            answer = low if truth - low > high - truth else high
        errors.append(abs(answer - truth))
    return errors


def _absolute_error(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    return _with_count(_rating_errors(predictions, golds, labels))


def _squared_error(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    return _with_count([error * error for error in _rating_errors(predictions, golds, labels)])


@functools.lru_cache(maxsize=1)
def rouge_scorer() -> Any:
    """Return the scorer of the official metrics: ROUGE-1 and ROUGE-L without a stemmer."""
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk, which a task with labels never needs

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def _rouge(kind: str, predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    """F-measure of each query.

    The official script reports the middle of a random bootstrap over queries; the plain mean used here
    differs from it by that resampling noise only.
    """
    return _with_count([_rouge_scores(gold, text)[kind] for text, gold in zip(predictions, golds, strict=True)])


@functools.lru_cache(maxsize=2**18)
def _rouge_scores(gold: str, text: str) -> dict[str, float]:
    """Both F-measures of one answer: 2 ms of work that every comparison and slice asks for again."""
    return {kind: found.fmeasure for kind, found in rouge_scorer().score(gold, text).items()}


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Acc", True, _accuracy, mean_of_sums),
        Metric("macro_f1", "F1", True, _confusion, _macro_f1),
        Metric("mae", "MAE", False, _absolute_error, mean_of_sums),
        Metric("rmse", "RMSE", False, _squared_error, _root_of_sums),
        Metric("rouge_1", "R-1", True, functools.partial(_rouge, "rouge1"), mean_of_sums),
        Metric("rouge_l", "R-L", True, functools.partial(_rouge, "rougeL"), mean_of_sums),
    )
}
