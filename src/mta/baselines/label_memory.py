"""What similar items got: a memory of all items of a pool and of the person's own, asked by nearness in meaning.

    p(label | item)  ~  sum_i w_i exp(sharpness (cos(item, item_i) - 1)) [label_i = label]  +  smoothing * share(label)

over the pool's items i, w_i = 1, and the person's own, w_i = `own`; share(label) is the pool's (Nadaraya-Watson; over
hidden states instead of sentence vectors it is the nearest-neighbour language model of Khandelwal et al. 2020). What is
given is the log of that over the pool's shares, a correction of any label scores as the person's label prior is one.
Sharpness, smoothing and `own` are chosen on items of the pool whose person is left out of it.

Example:
    >>> memory = fit_memory(task, pool, sentences)
    >>> memory.log_ratio(user, examples)  # (Q, L) nats
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from mta.baselines.classical_setup import Sentences, person_weights, smallest
from mta.baselines.label_prior import pool_shares, smoothed_shares
from mta.baselines.linear_models import Array, Ints
from mta.data.people import person_names, rule_for
from mta.errors import DataError
from mta.records import Example, User
from mta.seeds import stable_seed
from mta.tasks.task import Task

SETTINGS = ("sharpness", "smoothing", "own")
ASKED = 1500
"""Items of the pool, at most, on which the settings are chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """What is tried."""

    sharpness: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    """How fast an item counts less with its distance."""
    smoothing: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    """Equal items that the pool's label shares count for."""
    own: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Times that an item of the person's own counts."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LabelMemory:
    """Items of a pool with their labels."""

    task: Task
    sentences: Sentences
    vectors: Array
    """(N, D) of length 1"""
    labels: Ints
    """(N,) places among the task's labels"""
    persons: Ints
    """(N,) whose item each is"""
    person_of: Mapping[str, int]
    """User id of the pool -> the number of the person"""
    shares: Array
    """(L,) label shares of the pool"""
    chosen: dict[str, float] = field(default_factory=dict)
    """Setting -> value, see `MemoryConfig`."""
    nll: float = 0.0
    """Mean nll in nats of the memory alone on pool items whose person was left out, each person counting the same."""

    def log_ratio(self, user: User, examples: Sequence[Example]) -> Array:
        """Return (Q, L) logs of what the memory says of Q >= 1 examples over the pool's shares.

        Of a person of the pool, her items there are left out; they count as her own alone.
        """
        asked = unit(self.sentences.vectors([self.task.retrieval_query(example.fields) for example in examples]))
        others = self.persons != self.person_of.get(user.user_id, -1)
        kernel = _kernel(asked @ self.vectors[others].T, self.chosen["sharpness"])
        counts = kernel @ self.one_hot(self.labels[others])
        own = self.task.pairs(user, 0).pairs
        if own:
            near = unit(self.sentences.vectors([self.task.retrieval_query(pair.fields) for pair in own]))
            labels = np.array([self.task.labels.index(pair.answer) for pair in own])
            weights = self.chosen["own"] * _kernel(asked @ near.T, self.chosen["sharpness"])
            counts = counts + weights @ self.one_hot(labels)
        return np.asarray(np.log(smoothed_shares(counts, self.shares, self.chosen["smoothing"]) / self.shares))

    def one_hot(self, labels: Ints) -> Array:
        """Return (N, L) with a one for each of (N,) labels."""
        return np.asarray(np.eye(len(self.shares))[labels])


def fit_memory(
    task: Task, pool: Sequence[User], sentences: Sentences, *, config: MemoryConfig | None = None, seed: int = 0
) -> LabelMemory:
    """Remember a pool's items, and choose how they are asked.

    Args:
        task: with labels that mean the same in every question.
        pool: users other than those to be answered; their queries are not looked at.
        sentences: makes the vectors.
        config: what is tried; None is the defaults.
        seed: decides which items are asked where there are many.

    Raises:
        DataError: the usable items of the pool are not of two people at least.
    """
    users = sorted(pool, key=lambda user: user.user_id)
    names = person_names(users, rule=rule_for(task.task_id))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names.values()))}
    person_of = {user_id: numbers[name] for user_id, name in names.items()}
    rows = [(person_of[user.user_id], pair) for user in users for pair in task.pairs(user, 0).pairs]
    if len({person for person, _ in rows}) < 2:
        raise DataError(
            f"no memory for {task.task_id}: the {len(rows)} usable items of the pool are of fewer than 2 people; give "
            "a larger pool"
        )
    shares = pool_shares(task, users)
    memory = LabelMemory(
        task=task,
        sentences=sentences,
        vectors=unit(sentences.vectors([task.retrieval_query(pair.fields) for _, pair in rows])),
        labels=np.array([task.labels.index(pair.answer) for _, pair in rows]),
        persons=np.array([person for person, _ in rows]),
        person_of=person_of,
        shares=np.array([shares[label] for label in task.labels]),
    )
    order = sorted(range(len(rows)), key=lambda row: stable_seed(seed, "memory", rows[row][1].item_id))
    nll = _tried(memory, np.array(sorted(order[:ASKED])), config or MemoryConfig())
    best = smallest(nll)
    return replace(memory, chosen=dict(zip(SETTINGS, best, strict=True)), nll=nll[best])


def _tried(memory: LabelMemory, asked: Ints, config: MemoryConfig) -> dict[tuple[float, ...], float]:
    """Return what each setting gives on the items asked, answered by other people's and her own other items."""
    one_hot, persons = memory.one_hot(memory.labels), memory.persons
    weights = person_weights(persons[asked])
    nearness = memory.vectors[asked] @ memory.vectors.T
    hers = persons[asked][:, None] == persons[None]
    itself = asked[:, None] == np.arange(len(persons))[None]
    golds = memory.labels[asked]
    nll: dict[tuple[float, ...], float] = {}
    for sharpness in config.sharpness:
        kernel = np.where(itself, 0.0, _kernel(nearness, sharpness))
        others, own = np.where(hers, 0.0, kernel) @ one_hot, np.where(hers, kernel, 0.0) @ one_hot
        for smoothing, worth in product(config.smoothing, config.own):
            shares = smoothed_shares(others + worth * own, memory.shares, smoothing)
            nll[sharpness, smoothing, worth] = float(-np.log(shares[np.arange(len(asked)), golds]) @ weights)
    return nll


def unit(vectors: Array) -> Array:
    """Return (N, D) vectors scaled to length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def _kernel(cosines: Array, sharpness: float) -> Array:
    return np.asarray(np.exp(sharpness * (cosines - 1.0)))
