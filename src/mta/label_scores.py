"""Scores of labels: as log-probabilities, and as the answer that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mta.records import Prediction

Array = NDArray[np.float64]


def log_shares(scores: Array) -> Array:
    """Return (..., L) log-probabilities of (..., L) scores."""
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))


def median_label(scores: Mapping[str, float]) -> str:
    """Return the label below and above which at most half of the probability lies each, the lower of two.

    Of all answers to a rating it has the smallest expected absolute error.

    Args:
        scores: label -> score in nats, up to a constant; labels in ascending order of what they mean.
    """
    shares = np.exp(log_shares(np.array(list(scores.values()), dtype=np.float64)))
    return list(scores)[int(np.searchsorted(shares.cumsum(), 0.5 - 1e-12))]


def by_scores(prediction: Prediction, scores: Mapping[str, float]) -> Prediction:
    """Return a prediction answered anew from other label scores.

    The best label becomes label and text; the nll is that of the gold among the labels, None where the gold is none.

    Args:
        prediction: for the query and its gold answer.
        scores: label -> score in nats, up to a constant.
    """
    best = max(scores, key=lambda label: scores[label])
    logs = dict(zip(scores, log_shares(np.array(list(scores.values()), dtype=np.float64)).tolist(), strict=True))
    nll = -logs[prediction.gold] if prediction.gold in logs else None
    return replace(prediction, label_scores=dict(scores), label=best, text=best, nll=nll)
