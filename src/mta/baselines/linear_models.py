"""Linear regressions as plain arrays, and folds of people to choose their settings on.

scikit-learn does the fitting, in float64 and on one thread, so that equal rows give equal numbers everywhere; what it
finds is kept as weights. Knows no text and no task.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mta.data.people import PersonRule, find_people
from mta.errors import DataError
from mta.label_scores import log_shares
from mta.records import User
from mta.seeds import stable_seed

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[np.bool_]
"""(N,) which rows are meant"""

MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class LabelRegression:
    """Multinomial logistic regression over L labels, some of which may have had no example."""

    weights: Array
    """(S, D), a row for each of the S labels that had examples."""
    intercepts: Array
    """(S,)"""
    seen: Ints
    """(S,) places of these labels among the L."""
    shares: Array
    """(L,) shares above 0; a label without an example keeps its share for every input."""

    def log_shares(self, vectors: Array) -> Array:
        """Return (N, L) log-probabilities for (N, D) vectors; all are finite."""
        unseen = np.ones(len(self.shares), dtype=bool)
        unseen[self.seen] = False
        result = np.tile(np.log(self.shares), (len(vectors), 1))
        left = np.log1p(-self.shares[unseen].sum())
        result[:, self.seen] = log_shares(vectors @ self.weights.T + self.intercepts) + left
        return result


@dataclass(frozen=True, slots=True, eq=False)
class NumberRegression:
    """Ridge regression of one number."""

    weights: Array
    """(D,)"""
    intercept: float

    def values(self, vectors: Array) -> Array:
        """Return (N,) numbers for (N, D) vectors."""
        return np.asarray(vectors @ self.weights + self.intercept)


def fit_labels(vectors: Array, labels: Ints, shares: Array, C: float) -> LabelRegression:
    """Fit a logistic regression with an L2 penalty on the weights.

    Args:
        vectors: (N, D), N >= 1.
        labels: (N,) places among the L labels.
        shares: (L,) shares of the labels, each above 0, together 1.
        C: the larger, the smaller the penalty (scikit-learn's C: the loss is the sum over rows).
    """
    seen, places = np.unique(labels, return_inverse=True)
    if len(seen) == 1:
        return LabelRegression(np.zeros((1, vectors.shape[1])), np.zeros(1), seen, shares)
    weights, intercepts = _logistic(vectors, places, C, intercept=True)
    if len(seen) == 2:  # one row of weights, for the second label against the first
        weights, intercepts = (np.concatenate([np.zeros_like(part), part]) for part in (weights, intercepts))
    return LabelRegression(weights, intercepts, seen, shares)


def fit_choice(differences: Array, C: float) -> Array:
    """Fit what tells right from wrong options: p(right) = sigmoid(w . (features of right - features of wrong)).

    Args:
        differences: (N, F) features of the right option minus those of the wrong one, N >= 1.
        C: the larger, the smaller the penalty.

    Returns:
        (F,) weights w; there is no intercept, so the order of the options cannot matter.
    """
    both = np.concatenate([differences, -differences])  # both orders, so that there are two classes; half the loss each
    right = np.repeat([1, 0], len(differences))
    weights, _ = _logistic(both, right, C / 2, intercept=False)
    return np.asarray(weights[0])


def fit_numbers(vectors: Array, numbers: Array, penalty: float) -> NumberRegression:
    """Fit a ridge regression; the loss is the sum over rows of squared errors plus `penalty` times |w|^2."""
    from sklearn.linear_model import Ridge
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        model = Ridge(alpha=penalty, solver="cholesky").fit(vectors, numbers)
    return NumberRegression(np.asarray(model.coef_), float(model.intercept_))


def _logistic(vectors: Array, classes: Ints, C: float, *, intercept: bool) -> tuple[Array, Array]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is near enough, and still the same each time
        warnings.filterwarnings("ignore", message="The number of unique classes")  # a small pool is no regression
        model = LogisticRegression(C=C, max_iter=MAX_ITERATIONS, fit_intercept=intercept).fit(vectors, classes)
    return np.asarray(model.coef_), np.asarray(model.intercept_)


def people_folds(users: Sequence[User], *, rule: PersonRule, folds: int, seed: int) -> dict[str, int]:
    """Deal the people among the users into folds: user id -> fold from 0. Records of one person share a fold.

    Which fold depends on ids and seed, not on the order of the users. Fewer people give fewer folds.

    Raises:
        DataError: all records are one person.
    """
    groups = find_people(users, rule=rule)
    people = [min(group) for group in groups]
    if len(people) < 2:
        raise DataError(
            f"the usable items of the pool belong to {len(people)} person; settings are chosen on people left out of "
            "the fit, so wanted at least 2 people - give a larger pool"
        )
    order = sorted(range(len(people)), key=lambda place: (stable_seed(seed, "fold", people[place]), people[place]))
    return {user_id: turn % folds for turn, place in enumerate(order) for user_id in groups[place]}
