"""What every fit of the classical control is given, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import count
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from mta.baselines.linear_models import Array, Ints, Rows, people_folds
from mta.data.people import rule_for
from mta.encoders import Encoder, embed_cached
from mta.errors import ConfigError
from mta.progress import Progress, Step
from mta.records import Example, User
from mta.tasks.task import Task
from mta.vector_cache import VectorCache

Settings = TypeVar("Settings", bound=float | tuple[float, ...])


@dataclass(frozen=True, kw_only=True)
class ClassicalConfig:
    """What is tried; cross-validation over the people of the pool chooses."""

    folds: int = 5
    """Groups of people, each left out once; fewer where there are fewer people."""
    C: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Inverse penalties of the logistic regression; its inputs have a mean square length or a variance of 1."""
    smoothing: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    """Answers that the pool's label shares count for beside a person's own."""
    strength: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """Multiples of the log of the person's prior ratio; 0 leaves it out."""
    ridge: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """Penalties of the ridge regression of ratings."""
    shrinkage: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    """Residuals of 0 that stand beside a person's own when their mean is taken."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}; it must be 2 or more, so that people can be left out")
        for name in (part.name for part in fields(self) if part.name != "folds"):
            values: tuple[float, ...] = getattr(self, name)
            fits = all(0 < value < math.inf or (value == 0 and name == "strength") for value in values)
            if not values or not fits:
                least = "0 or more" if name == "strength" else "above 0"
                raise ConfigError(f"{name} is {values}; give at least one value, each {least} and finite")


class Answers(NamedTuple):
    """What a model says to N examples of one person."""

    log_shares: Array
    """(N, L) log-probabilities of the labels."""
    numbers: Array | None = None
    """(N,) ratings; None where the best label is the answer."""


class Model(Protocol):
    """What is fitted: it answers examples of one person, with or without her history."""

    def answer(self, user: User, examples: Sequence[Example], *, personal: bool) -> Answers:
        """Answer N >= 1 examples."""


class Fitted(NamedTuple):
    """A model and how its settings came about."""

    model: Model
    chosen: dict[str, float]
    """Setting -> the value chosen."""
    held_out: dict[str, float]
    """Measure -> its value for the chosen settings on people left out of the fit."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts to vectors."""

    encoder: Encoder
    cache: VectorCache | None

    def vectors(self, texts: Sequence[str], on_progress: Step | None = None) -> Array:
        """Return (N, D) float64."""
        return embed_cached(self.encoder, texts, cache=self.cache, on_progress=on_progress).double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSetup:
    """What a fit is given."""

    task: Task
    users: Sequence[User]
    """The pool, in order of ids."""
    sentences: Sentences
    config: ClassicalConfig
    seed: int
    progress: Progress

    def embed(self, texts: Sequence[str]) -> Array:
        """Return (N, D) vectors of the pool's texts and tell how far it is."""
        with self.progress("pool vectors") as step:
            return self.sentences.vectors(texts, step)

    @contextmanager
    def fitting(self, tries: int) -> Iterator[Callable[[], None]]:
        """Give a function to call after each of so many settings tried."""
        done = count(1)
        with self.progress("classical fit") as step:
            yield lambda: step(next(done), tries)

    def folds_of(self, persons: Ints) -> Ints:
        """Return (N,) folds of rows, given each row's place among the users.

        Raises:
            DataError: all rows are one person's.
        """
        users = [self.users[place] for place in np.unique(persons)]
        folds = people_folds(users, rule=rule_for(self.task.task_id), folds=self.config.folds, seed=self.seed)
        return np.array([folds[self.users[place].user_id] for place in persons])


def person_weights(persons: Ints) -> Array:
    """Return (N,) weights of rows, together 1, such that each person counts the same.

    Targets have about as many queries each, whereas pool users' histories differ by a factor of ten: without the
    weights the settings would be those of a few.
    """
    weights = 1.0 / np.bincount(persons)[persons]
    return np.asarray(weights / weights.sum())


def smallest(tried: Mapping[Settings, float]) -> Settings:
    """Return the settings with the smallest value; of equal ones the smallest settings."""
    return min(sorted(tried), key=lambda settings: tried[settings])


def left_out(folds: Ints, fit_and_answer: Callable[[Rows, Rows], Array]) -> Array:
    """Return (N, ...) answers to all rows, each by a fit on the other folds.

    Args:
        folds: (N,) folds of the rows; at least two different ones.
        fit_and_answer: (rows to fit on, rows to answer) -> the answers to the latter.
    """
    parts = [(np.flatnonzero(folds == fold), fit_and_answer(folds != fold, folds == fold)) for fold in np.unique(folds)]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    return np.asarray(np.concatenate([answers for _, answers in parts])[order])
