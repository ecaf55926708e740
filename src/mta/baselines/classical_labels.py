"""The classical control of label and rating tasks: regressions over all pool items, corrected by the person's habits.

Labels: logistic regression, plus strength times the log of the person's prior ratio. Ratings: besides, ridge regression
of the number, plus the person's mean residual, shrunken towards 0. Settings are chosen one after the other, each on the
measure that it serves: the regressions without the person first, then what is personal. A person's item is judged by
regressions without her and by her other items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mta.baselines.classical_setup import (
    Answers,
    ClassicalConfig,
    FitSetup,
    Fitted,
    Sentences,
    left_out,
    person_weights,
    smallest,
)
from mta.baselines.label_prior import log_ratio, own_labels, smoothed_shares
from mta.baselines.linear_models import Array, Ints, LabelRegression, NumberRegression, Rows, fit_labels, fit_numbers
from mta.errors import DataError
from mta.label_scores import log_shares
from mta.records import Example, User
from mta.tasks.task import Task


@dataclass(frozen=True, eq=False, kw_only=True)
class RatingModel:
    """Ridge regression of a rating, and how much a person's own residuals count."""

    regression: NumberRegression
    shrinkage: float
    lowest: float
    highest: float

    def ratings(self, vectors: Array, residuals: Array) -> Array:
        """Return (N,) ratings within the labels' range for (N, D) vectors, given (H,) residuals of own items."""
        offset = shrunken_mean(residuals.sum(keepdims=True), np.array([len(residuals)]), self.shrinkage)
        return np.asarray(np.clip(self.regression.values(vectors) + offset, self.lowest, self.highest))


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelModel:
    """Label regression with a person's prior; for ratings also a number."""

    task: Task
    sentences: Sentences
    centre: Array
    """(D,) mean of the pool's vectors."""
    scale: float
    """Root of the mean square length of the centred vectors."""
    regression: LabelRegression
    smoothing: float
    strength: float
    rating: RatingModel | None = None

    def answer(self, user: User, examples: Sequence[Example], *, personal: bool) -> Answers:
        """Answer by the regressions; `personal` adds what the user's own history says."""
        vectors = self._vectors([self.task.retrieval_query(example.fields) for example in examples])
        scores = self.regression.log_shares(vectors)
        if personal:
            ratio = log_ratio(label_counts(self.task, user), self.regression.shares, self.smoothing)
            scores = scores + self.strength * ratio
        numbers = None
        if self.rating:
            numbers = self.rating.ratings(vectors, self._residuals(user, self.rating) if personal else np.zeros(0))
        return Answers(log_shares(scores), numbers)

    def _residuals(self, user: User, rating: RatingModel) -> Array:
        pairs = self.task.pairs(user, 0).pairs
        vectors = self._vectors([self.task.retrieval_query(pair.fields) for pair in pairs])
        return np.asarray(np.array([float(pair.answer) for pair in pairs]) - rating.regression.values(vectors))

    def _vectors(self, texts: Sequence[str]) -> Array:
        return np.asarray((self.sentences.vectors(texts) - self.centre) / self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class _Items:
    """All usable items of a pool, in N rows."""

    vectors: Array
    """(N, D) centred and scaled."""
    labels: Ints
    """(N,) places among the task's labels."""
    persons: Ints
    """(N,) places among the pool's users."""
    folds: Ints
    """(N,)"""
    others: Array
    """(N, L) how often the person gave each label to her other items."""

    def shares(self, chosen: Rows) -> Array:
        """Return (L,) label shares of the chosen rows, each label counted once more than it occurs."""
        size = self.others.shape[1]
        counts = np.bincount(self.labels[chosen], minlength=size).astype(np.float64)
        return smoothed_shares(counts, np.full(size, 1 / size), float(size))

    def fit(self, chosen: Rows, C: float) -> LabelRegression:
        """Fit the label regression on the chosen rows."""
        return fit_labels(self.vectors[chosen], self.labels[chosen], self.shares(chosen), C)


def fit_label_model(setup: FitSetup) -> Fitted:
    """Fit the control of a label or rating task, with settings chosen on people left out.

    Raises:
        DataError: no item of the pool is of use, or all have the same label.
    """
    task, config = setup.task, setup.config
    rows = [(place, pair) for place, user in enumerate(setup.users) for pair in task.pairs(user, setup.seed).pairs]
    _require_two_labels(task, setup.users, {pair.answer for _, pair in rows})
    plain = setup.embed([task.retrieval_query(pair.fields) for _, pair in rows])
    centre = plain.mean(axis=0)
    scale = float(np.sqrt(((plain - centre) ** 2).sum(axis=1).mean())) or 1.0  # all texts alike: any scale will do
    labels = np.array([task.labels.index(pair.answer) for _, pair in rows])
    persons = np.array([place for place, _ in rows])
    counts = np.stack([label_counts(task, user) for user in setup.users])
    items = _Items(
        (plain - centre) / scale,
        labels,
        persons,
        setup.folds_of(persons),
        counts[persons] - np.eye(len(task.labels))[labels],
    )
    values = np.array([float(label) for label in task.labels]) if task.kind == "rating" else None
    rating = None
    with setup.fitting(len(config.C) + (0 if values is None else len(config.ridge))) as tick:
        chosen, held_out = _choose_labels(items, config, tick)
        if values is not None:
            rating, more_chosen, more_held_out = _fit_ratings(items, values, config, tick)
            chosen, held_out = chosen | more_chosen, held_out | more_held_out
    model = LabelModel(
        task=task,
        sentences=setup.sentences,
        centre=centre,
        scale=scale,
        regression=items.fit(np.ones(len(labels), dtype=bool), chosen["C"]),
        smoothing=chosen["smoothing"],
        strength=chosen["strength"],
        rating=rating,
    )
    return Fitted(model, chosen, held_out)


def label_counts(task: Task, user: User) -> Array:
    """Return (L,) how often the person gave each label to her own items."""
    counts = Counter(own_labels(task, user))
    return np.array([counts[label] for label in task.labels], dtype=np.float64)


def shrunken_mean(total: Array, count: Ints, shrinkage: float) -> Array:
    """Return the mean of `count` values that sum to `total`, as if `shrinkage` zeros stood beside them."""
    return np.asarray(total / (count + shrinkage))


def _choose_labels(
    items: _Items, config: ClassicalConfig, tick: Callable[[], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what was chosen and what it scored; first C for the regression alone, then the prior's settings."""
    weights = person_weights(items.persons)

    def by_others(C: float) -> Array:
        scores = left_out(items.folds, lambda on, to: items.fit(on, C).log_shares(items.vectors[to]))
        tick()
        return scores

    def nll(scores: Array) -> float:
        return float(-scores[np.arange(len(scores)), items.labels] @ weights)

    def accuracy(scores: Array) -> float:
        return float((scores.argmax(axis=1) == items.labels) @ weights)

    by_C = {C: by_others(C) for C in config.C}
    best_C = smallest({C: nll(scores) for C, scores in by_C.items()})
    alone = by_C[best_C]
    pool = left_out(items.folds, lambda on, to: np.tile(items.shares(on), (int(to.sum()), 1)))

    def with_person(smoothing: float, strength: float) -> Array:
        return log_shares(alone + strength * log_ratio(items.others, pool, smoothing))

    pairs = product(config.smoothing, config.strength)
    smoothing, strength = smallest({pair: nll(with_person(*pair)) for pair in pairs})
    both = with_person(smoothing, strength)
    held_out = {
        "nll_pool": nll(alone),
        "nll": nll(both),
        "accuracy_pool": accuracy(alone),
        "accuracy": accuracy(both),
    }
    return {"C": best_C, "smoothing": smoothing, "strength": strength}, held_out


def _fit_ratings(
    items: _Items, values: Array, config: ClassicalConfig, tick: Callable[[], None]
) -> tuple[RatingModel, dict[str, float], dict[str, float]]:
    """Fit the ridge regression; first its penalty for the regression alone, then the shrinkage of the residuals."""
    weights, golds = person_weights(items.persons), values[items.labels]
    low, high = float(values.min()), float(values.max())

    def by_others(penalty: float) -> Array:
        numbers = left_out(
            items.folds, lambda on, to: fit_numbers(items.vectors[on], golds[on], penalty).values(items.vectors[to])
        )
        tick()
        return numbers

    def mse(numbers: Array) -> float:
        return float((np.clip(numbers, low, high) - golds) ** 2 @ weights)

    by_penalty = {penalty: by_others(penalty) for penalty in config.ridge}
    ridge = smallest({penalty: mse(numbers) for penalty, numbers in by_penalty.items()})
    alone = by_penalty[ridge]
    residuals = golds - alone
    total = np.bincount(items.persons, weights=residuals)[items.persons] - residuals
    count = np.bincount(items.persons)[items.persons] - 1
    shrunken = {shrinkage: mse(alone + shrunken_mean(total, count, shrinkage)) for shrinkage in config.shrinkage}
    shrinkage = smallest(shrunken)
    regression = fit_numbers(items.vectors, golds, ridge)
    model = RatingModel(regression=regression, shrinkage=shrinkage, lowest=low, highest=high)
    held_out = {"rmse_pool": mse(alone) ** 0.5, "rmse": shrunken[shrinkage] ** 0.5}
    return model, {"ridge": ridge, "shrinkage": shrinkage}, held_out


def _require_two_labels(task: Task, users: Sequence[User], found: set[str]) -> None:
    if len(found) < 2:
        got = f"only the label {next(iter(found))!r}" if found else "no usable label"
        items = sum(len(user.history) for user in users)
        raise DataError(
            f"no classical control for {task.task_id}: the {items} history items of the {len(users)} pool users have "
            f"{got} in {task.output_field}; wanted at least two of {', '.join(task.labels)} - give a pool of this "
            "task with different answers"
        )
