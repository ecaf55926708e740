"""A person's label prior: what she usually answers, as a correction of any label scores.

A model that sees one item knows what people in general would answer. By Bayes' rule, an item and a person that are
independent given the label combine as

    p(label | item, person)  ~  p(label | item) * p(label | person) / p(label)

so the correction is the log of the person's share of each label over the pool's. Shares are smoothed towards the
pool's: a person without history, or one with the pool's own shares, changes nothing. A strength, chosen on users of the
pool, says how much of the correction is used; 0 switches it off. Scores that are too sure of themselves may be divided
by a temperature first, chosen likewise:

    scores / temperature + strength * log(person's share / pool's share)

Pure functions of histories and predictions; no model, no file.

Example:
    >>> shares = pool_shares(task, pool)
    >>> ratio = log_prior_ratio(user, shares, task, smoothing=5.0)
    >>> with_prior(prediction, ratio, strength=1.0).label
    'comedy'
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mta.errors import ConfigError, DataError
from mta.label_scores import by_scores
from mta.records import Prediction, User
from mta.tasks.labels import given_labels
from mta.tasks.task import Task

Array = NDArray[np.float64]

SMOOTHING = 5.0
"""Answers that the pool's shares count for beside a person's own."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Strengths tried for a language model; above 1 where its label scores are too sure of themselves."""
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
"""Temperatures tried for a language model's label scores."""


@dataclass(frozen=True, slots=True)
class StrengthChoice:
    """The strength that fits the pool's users best, and what the others gave."""

    strength: float
    nll_by_strength: Mapping[float, float]
    """Strength -> mean nll of the gold label in nats at the best temperature, strengths ascending."""
    temperature: float = 1.0
    """The temperature that goes with it."""


def prior_fits(task: Task) -> bool:
    """Say whether a person can have a prior over a task's labels.

    Free text has no labels; LaMP-1's "[1]" and "[2]" are places that mean something else in every question.
    """
    return bool(task.labels) and task.task_id != "lamp-1"


def own_labels(task: Task, user: User) -> list[str]:
    """Return the labels the person gave to her own items, in their order; other answers are left out.

    Raises:
        ConfigError: the task has no labels, or labels without a meaning of their own.
    """
    _require_prior(task)
    return given_labels(task, user)


def label_shares(
    labels: Sequence[str], answers: Sequence[str], *, smoothing: float, towards: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return each label's share of the answers, smoothed.

    Args:
        labels: L different labels.
        answers: answers seen; each is one of the labels.
        smoothing: answers' worth of `towards` that are added, above 0.
        towards: label -> share of what is smoothed towards, each above 0 and together 1; None is equal shares.

    Returns:
        Label -> share; each above 0, together 1.

    Raises:
        ConfigError: `smoothing` is not above 0, or `towards` lacks a label or gives one no share.
        DataError: an answer is not one of the labels.
    """
    counts = Counter(answers)
    if unknown := sorted(counts.keys() - set(labels)):
        raise DataError(
            f"cannot count answers: {unknown[0]!r} is not one of {', '.join(labels)}; leave such answers out first"
        )
    even = dict.fromkeys(labels, 1 / len(labels))
    shares = smoothed_shares(
        np.array([counts[label] for label in labels], dtype=np.float64),
        _in_order(labels, even if towards is None else towards),
        smoothing,
    )
    return dict(zip(labels, shares.tolist(), strict=True))


def pool_shares(task: Task, pool: Sequence[User]) -> dict[str, float]:
    """Return each label's share of all items of a pool, each label counted once more than it occurs.

    Raises:
        ConfigError: the task has no labels, or labels without a meaning of their own.
        DataError: no item of the pool has a label.
    """
    _require_prior(task)
    answers = [answer for user in pool for answer in own_labels(task, user)]
    if not answers:
        raise DataError(
            f"no history item of the {len(pool)} pool users is answered with a label of {task.task_id}; wanted items "
            f"whose {task.output_field} is one of {', '.join(task.labels)} - give a pool of this task"
        )
    return label_shares(task.labels, answers, smoothing=float(len(task.labels)))


def log_prior_ratio(
    user: User, pool_shares: Mapping[str, float], task: Task, smoothing: float = SMOOTHING
) -> dict[str, float]:
    """Return the log of a person's smoothed label shares over the pool's: label -> nats.

    Args:
        user: whose history is counted; the queries are not looked at.
        pool_shares: label -> share in the pool, as `pool_shares` gives it.
        task: the labels.
        smoothing: answers that the pool's shares count for beside the person's own, above 0.

    Raises:
        ConfigError: the task has no labels of a meaning of their own, or a number is out of range.
    """
    counts = Counter(own_labels(task, user))
    ratio = log_ratio(
        np.array([counts[label] for label in task.labels], dtype=np.float64),
        _in_order(task.labels, pool_shares),
        smoothing,
    )
    return dict(zip(task.labels, ratio.tolist(), strict=True))


def smoothed_shares(counts: Array, towards: Array, smoothing: float) -> Array:
    """Return (..., L) shares (counts + s * towards) / (sum of counts + s) of (..., L) counts.

    Raises:
        ConfigError: the smoothing s is not above 0, or not finite.
    """
    if not 0 < smoothing < math.inf:
        raise ConfigError(f"smoothing is {smoothing}; it must be above 0 and finite, or an unseen label has no share")
    return np.asarray((counts + smoothing * towards) / (counts.sum(axis=-1, keepdims=True) + smoothing))


def log_ratio(counts: Array, pool: Array, smoothing: float) -> Array:
    """Return (..., L) logs of the smoothed shares of (..., L) counts over the pool's (..., L) shares."""
    return np.asarray(np.log(smoothed_shares(counts, pool, smoothing) / pool))


def with_prior(
    prediction: Prediction, ratio: Mapping[str, float], strength: float, temperature: float = 1.0
) -> Prediction:
    """Add `strength` times the log prior ratio to a prediction's label scores, and answer anew from the sum.

    See `by_scores`. A prediction without label scores comes back unchanged.

    Args:
        prediction: with label scores, in nats.
        ratio: label -> log prior ratio; not looked at where the strength is 0.
        strength: 0 or more.
        temperature: what the label scores are divided by before; above 0.

    Raises:
        ConfigError: the ratio lacks one of the scored labels, or a number is out of range or not finite.
    """
    _require_strength(strength)
    _require_temperature(temperature)
    if not prediction.label_scores:
        return prediction
    labels = list(prediction.label_scores)
    scores = _scores(prediction) / temperature
    if strength > 0:
        scores = scores + strength * _in_order(labels, ratio, what="prior ratio", positive=False)
    return by_scores(prediction, dict(zip(labels, scores.tolist(), strict=True)))


def choose_strength(
    predictions: Sequence[Prediction],
    ratios: Mapping[str, Mapping[str, float]],
    grid: Sequence[float] = STRENGTHS,
    temperatures: Sequence[float] = (1.0,),
) -> StrengthChoice:
    """Choose strength and temperature with the smallest mean nll of the gold label.

    Of equal ones the smaller strength is chosen, then the temperature nearer to 1.

    Args:
        predictions: answers to queries of pool users, never of targets; those without label scores or without a
            known gold label are passed over.
        ratios: user id -> log prior ratio, from a history that does not hold the query.
        grid: strengths to try; 0 is among them.
        temperatures: temperatures to try with each of them.

    Raises:
        ConfigError: the grid lacks 0, or holds a strength below 0, or a temperature is not above 0.
        DataError: nothing to choose on, or a user without a ratio.
    """
    for strength in grid:
        _require_strength(strength)
    for temperature in temperatures:
        _require_temperature(temperature)
    if 0 not in grid:
        raise ConfigError(
            f"the strengths to try are {list(grid)}; 0 must be among them, or the prior cannot be refused"
        )
    known = [row for row in predictions if row.gold in row.label_scores]
    if not known:
        raise DataError(
            f"cannot choose the prior's strength: none of {len(predictions)} predictions has label scores and a gold "
            "label; give predictions of a label task for pool users whose answers are known"
        )
    lacking = sorted({row.user_id for row in known} - ratios.keys())
    if lacking and any(grid):
        raise DataError(
            f"cannot choose the prior's strength: user {lacking[0]!r} (of {len(lacking)}) has no prior ratio; "
            "make one for every pool user with log_prior_ratio"
        )
    warm = sorted(set(map(float, temperatures)), key=lambda temperature: abs(math.log(temperature)))
    nll_by_strength: dict[float, float] = {}
    best_temperature: dict[float, float] = {}
    for strength in sorted(set(map(float, grid))):
        nlls = {temperature: _mean_nll(known, ratios, strength, temperature) for temperature in warm}
        best_temperature[strength] = min(warm, key=lambda temperature: nlls[temperature])
        nll_by_strength[strength] = nlls[best_temperature[strength]]
    strength = min(nll_by_strength, key=lambda strength: nll_by_strength[strength])
    return StrengthChoice(strength, nll_by_strength, best_temperature[strength])


def _mean_nll(
    predictions: Sequence[Prediction], ratios: Mapping[str, Mapping[str, float]], strength: float, temperature: float
) -> float:
    nlls = (with_prior(row, ratios.get(row.user_id, {}), strength, temperature).nll for row in predictions)
    return math.fsum(nll for nll in nlls if nll is not None) / len(predictions)


def _scores(prediction: Prediction) -> Array:
    return np.array(list(prediction.label_scores.values()), dtype=np.float64)


def _in_order(
    labels: Sequence[str], values: Mapping[str, float], *, what: str = "label shares", positive: bool = True
) -> Array:
    """Return (L,) values in the order of the labels."""
    bad = [label for label in labels if label not in values or (positive and not values[label] > 0)]
    if bad:
        found = repr(values[bad[0]]) if bad[0] in values else "nothing"
        raise ConfigError(
            f"the {what} hold {found} for the label {bad[0]!r}; wanted a number{' above 0' if positive else ''} for "
            f"each of {', '.join(labels)} - make them with this task's labels"
        )
    return np.array([values[label] for label in labels], dtype=np.float64)


def _require_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise ConfigError(f"the prior's strength is {strength}; it must be 0 or more and finite")


def _require_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"the temperature is {temperature}; it must be above 0 and finite")


def _require_prior(task: Task) -> None:
    if not prior_fits(task):
        why = "its labels mean something else in every question" if task.labels else "its answers are free text"
        raise ConfigError(
            f"no label prior for {task.task_id}: {why}; use it with a task whose labels keep their meaning, "
            "as lamp-2 and lamp-3"
        )
