"""Weights of pooled label scores."""

from __future__ import annotations

import numpy as np
import pytest

from mta.baselines.pooled_labels import PULL, fit_weights
from mta.label_scores import log_shares


def drawn(weights: list[float], questions: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of sources for questions of 3 labels, and gold labels drawn from their sum with these weights."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(questions, len(weights), 3))
    shares = np.exp(log_shares(np.einsum("k,nkl->nl", np.array(weights), scores)))
    golds = np.array([generator.choice(3, p=each) for each in shares])
    return scores, golds


def test_the_weights_that_drew_the_labels_are_found() -> None:
    scores, golds = drawn([0.5, 1.5])
    assert fit_weights(scores, golds, start=np.ones(2), pull=0.0) == pytest.approx([0.5, 1.5], abs=0.1)


def test_a_source_that_misleads_is_left_out() -> None:
    scores, golds = drawn([1.0, -1.0])
    assert fit_weights(scores, golds, start=np.ones(2))[1] == 0.0


def test_no_other_weights_cost_less() -> None:
    scores, golds = drawn([0.7, 0.2, 1.0], questions=50)
    start = np.array([1.0, 0.5, 0.5])

    def cost(weights: np.ndarray) -> float:
        logs = log_shares(np.einsum("k,nkl->nl", weights, scores))
        return float(-np.mean([row[gold] for row, gold in zip(logs, golds, strict=True)])) + PULL * float(
            ((weights - start) ** 2).sum()
        )

    best = fit_weights(scores, golds, start=start)
    for step in 0.01 * np.concatenate([np.eye(3), -np.eye(3)]):
        assert cost(best) <= cost(np.maximum(best + step, 0)) + 1e-9


def test_one_question_that_all_sources_know_keeps_the_weights_finite() -> None:
    scores = np.array([[[5.0, 0.0], [3.0, 0.0]]])
    weights = fit_weights(scores, np.array([0]), start=np.ones(2))
    assert (weights >= 1).all()
    assert (weights < 5).all()
