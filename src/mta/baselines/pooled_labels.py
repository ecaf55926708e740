"""Label scores of several sources, pooled: a weighted sum of their logs, with weights chosen on people of the pool.

    score(label) = sum_k c_k score_k(label),   c_k >= 0

The weights make the gold labels of known questions likeliest (logarithmic opinion pool; with one source the weight is
the inverse of a temperature). The sum is convex in the weights, so there is one best; a small pull towards the start
keeps it finite where few people judge.

Example:
    >>> weights = fit_weights(scores, golds, start=np.array([1.0, 0.0, 0.0]))
    >>> pooled = np.einsum("k,nkl->nl", weights, scores)
"""

from __future__ import annotations

import numpy as np

from mta.baselines.linear_models import Array, Ints
from mta.label_scores import log_shares

PULL = 0.1
"""Nats that a weight one away from its start costs beside the mean nll."""


def fit_weights(scores: Array, golds: Ints, *, start: Array, pull: float = PULL) -> Array:
    """Return the (K,) weights, each 0 or more, under which the gold labels are likeliest.

    Args:
        scores: (N, K, L) of K sources for N >= 1 questions, finite.
        golds: (N,) places of the gold labels.
        start: (K,) weights that are taken where the questions say nothing.
        pull: how much the questions must say for it; see `PULL`.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    rows = np.arange(len(golds))

    def cost(weights: Array) -> tuple[float, Array]:
        logs = log_shares(np.einsum("k,nkl->nl", weights, scores))
        expected = np.einsum("nl,nkl->nk", np.exp(logs), scores)
        slope = (expected - scores[rows, :, golds]).mean(axis=0) + 2 * pull * (weights - start)
        return float(-logs[rows, golds].mean() + pull * ((weights - start) ** 2).sum()), slope

    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(start))
    return np.asarray(found.x, dtype=np.float64)
