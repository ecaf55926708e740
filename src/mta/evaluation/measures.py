"""What can be read off predictions: official metrics of the text, label scores, and the likelihood of the gold answer.

Example:
    >>> find_measure("nll").higher_is_better
    False
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mta.errors import unknown_name
from mta.evaluation.calibration import calibrated_nats, can_be_calibrated
from mta.metrics import METRICS, Array, Metric, mean_of_sums, pooled_statistics
from mta.records import Prediction

logger = logging.getLogger(__name__)


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


def _calibrated_rows(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array | None:
    """(N, 2) rows of nats at other people's temperature and answer tokens, whose sums give nats per token."""
    known = [prediction for prediction in predictions if can_be_calibrated(prediction)]
    if not _complete("nll_calibrated", len(known), len(predictions)):
        return None
    return np.stack([calibrated_nats(known), [row.nll_tokens for row in known]], axis=1)


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
        Measure("nll_calibrated", "NLL cal.", False, _calibrated_rows, mean_of_sums),
    )
}


def measure_names(metrics: Sequence[str]) -> list[str]:
    """List what is measured for a task with these official metrics: they, label scores, and NLL."""
    extras = ["label_accuracy"] if {"accuracy", "mae"} & set(metrics) else []
    extras += ["label_mae"] if "mae" in metrics else []
    return list(dict.fromkeys([*metrics, *extras, "nll", "nll_calibrated"]))


def find_measure(name: str) -> Measure:
    """Return the measure called `name`.

    Raises:
        NotFound: there is none; the message lists those that exist.
    """
    if name not in MEASURES:
        raise unknown_name("metric", name, MEASURES)
    return MEASURES[name]
