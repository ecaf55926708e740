"""Any method that scores labels, pooled with what the person usually answers and with what similar items got.

Three sources (see `pooled_labels`): the method's own label scores, the person's label prior (`label_prior`), and the
memory of the pool's items and her own (`label_memory`). Their weights are chosen on users of the pool, the judges, as
strength and temperature are in `prior_method`; targets play no part. Where labels have no meaning of their own, or the
answer is free text, there is neither prior nor memory, and the method is calibrated alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mta.baselines.classical_setup import Sentences
from mta.baselines.label_memory import fit_memory
from mta.baselines.label_prior import log_prior_ratio, pool_shares, prior_fits
from mta.baselines.linear_models import Array
from mta.baselines.pooled_labels import fit_weights
from mta.baselines.prior_method import FEWEST_JUDGES, judges_of, with_calibration
from mta.encoders import load_encoder
from mta.evaluation.predict import predict
from mta.label_scores import by_scores, log_shares
from mta.personalize import Method, PersonalizedUsers, Resources
from mta.records import Prediction, User
from mta.tasks.examples import query_examples

log = logging.getLogger(__name__)

SOURCES = ("model", "prior", "memory")
START = (1.0, 0.5, 0.5)
"""Weights of the sources where nobody can judge."""


def with_memory(method: Method) -> Method:
    """Return the method with label scores pooled with the person's prior and with what similar items got."""
    return partial(_serve, method)


@dataclass(frozen=True, slots=True)
class LabelSources:
    """What is known of every user beside the method's scores."""

    labels: tuple[str, ...]
    of_query: Mapping[tuple[str, str], Array]
    """User id, query id -> (2, L) prior and memory."""

    def scores(self, row: Prediction) -> Array:
        """Return (3, L) scores of all sources; zeros for what is not known."""
        model = log_shares(np.array([row.label_scores[label] for label in self.labels]))
        known = self.of_query.get((row.user_id, row.query_id), np.zeros((2, len(self.labels))))
        return np.asarray(np.concatenate([model[None], known]))


def _serve(method: Method, users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    if not prior_fits(resources.task):
        return with_calibration(method)(users, resources)
    judges = judges_of(resources)
    sources = label_sources([*judges, *users], resources)
    weights, seconds = _choose(method, judges, sources, resources)
    people = method(users, resources)
    change = partial(pooled, sources=sources, weights=weights)
    return replace(
        people,
        users={name: replace(person, finish=change) for name, person in people.users.items()},
        shared_seconds=people.shared_seconds + seconds,
        chosen={
            **people.chosen,
            **{f"weight of {name}": round(float(weight), 4) for name, weight in zip(SOURCES, weights, strict=True)},
        },
    )


def label_sources(users: Sequence[User], resources: Resources) -> LabelSources:
    """Ask prior and memory about every query."""
    task = resources.task
    encoder = resources.encoder or load_encoder(resources.match.encoder, device=resources.base.device)
    with resources.progress("memory"):
        memory = fit_memory(task, resources.pool, Sentences(encoder, resources.cache))
    log.info("memory of %d items: %s, nll %.3f on people left out", len(memory.labels), memory.chosen, memory.nll)
    shares = pool_shares(task, resources.pool)
    found = {}
    for user in users:
        examples = query_examples(task, user, history_k=0)
        if examples:
            ratio = log_prior_ratio(user, shares, task)
            prior = np.array([ratio[label] for label in task.labels])
            for example, near in zip(examples, memory.log_ratio(user, examples), strict=True):
                found[user.user_id, example.example_id] = np.stack([prior, near])
    return LabelSources(task.labels, found)


def _choose(method: Method, judges: Sequence[User], sources: LabelSources, resources: Resources) -> tuple[Array, float]:
    """Choose the weights on the judges; return them and the seconds that the judges' training took."""
    start = np.array(START)
    if len(judges) < FEWEST_JUDGES:
        log.warning("besides the anchors, %d people of the pool can judge; sources get weights %s", len(judges), START)
        return start, 0.0
    people = method(judges, resources)
    with resources.progress("weights of sources") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    golds = np.array([sources.labels.index(row.gold) for row in made.rows])
    weights = fit_weights(np.stack([sources.scores(row) for row in made.rows]), golds, start=start)
    log.info("weights of %s: %s, chosen on %d pool users", SOURCES, weights.round(3).tolist(), len(judges))
    return weights, people.train_seconds


def pooled(row: Prediction, *, sources: LabelSources, weights: Array) -> Prediction:
    """Return the answer by the weighted sum of all sources."""
    if not row.label_scores:
        return row
    logs = log_shares(weights @ sources.scores(row))
    return by_scores(row, dict(zip(sources.labels, logs.tolist(), strict=True)))
