"""All that `NAME+pooled` knows without a language model, and nothing else: what the model adds is what lies above it.

The classical regression, the person's label prior and the memory of similar items, pooled with weights chosen on people
of the pool as in `pooled_method`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mta.baselines.linear_models import Array
from mta.baselines.pooled_labels import fit_weights
from mta.baselines.pooled_method import SOURCES, START, Source, fitting_sources, judged_scores
from mta.baselines.prior_method import judges_of
from mta.baselines.simple import without_model
from mta.errors import DataError
from mta.label_scores import by_scores, log_shares, median_label
from mta.personalize import PersonalizedUsers, Resources
from mta.records import Example, Prediction, User
from mta.tasks.task import Task

log = logging.getLogger(__name__)


def sources_alone(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with what every source says that means something for the task, pooled.

    Raises:
        DataError: the pool is too small for a source.
    """
    names = fitting_sources(resources.task, tuple(SOURCES))
    weights = _choose(resources, names)
    sources = [SOURCES[name].fit(resources, resources.pool) for name in names]
    people = without_model(users, resources, partial(_answers, resources.task, sources=sources, weights=weights))
    shown = {f"weight of {name}": round(weight, 4) for name, weight in zip(names, weights.tolist(), strict=True)}
    return replace(people, chosen=shown)


def _choose(resources: Resources, names: Sequence[str]) -> Array:
    """Return the (S,) weights under which the gold labels of the judges' questions are likeliest."""
    start = np.full(len(names), START)
    judges = judges_of(resources)
    try:
        known = judged_scores(judges, resources, names).of_query
    except DataError as error:
        log.warning(
            "besides the anchors, %d people of the pool can judge, and that is too few (%s); sources get weights %s",
            *(len(judges), error, start.tolist()),
        )
        return start
    golds = {(judge.user_id, query.query_id): query.gold for judge in judges for query in judge.queries}
    places = np.array([resources.task.labels.index(str(golds[key])) for key in known])
    return fit_weights(np.stack(list(known.values())), places, start=start)


def _answers(
    task: Task, user: User, examples: Sequence[Example], *, sources: Sequence[Source], weights: Array
) -> list[Prediction]:
    if not examples:
        return []
    scores = np.stack([source(user, examples) for source in sources])  # (S, Q, L)
    logs = log_shares(np.einsum("s,sql->ql", weights, scores))
    return [_answer(task, example, row) for example, row in zip(examples, logs, strict=True)]


def _answer(task: Task, example: Example, logs: Array) -> Prediction:
    asked = Prediction(query_id=example.example_id, user_id=example.user_id, gold=example.answer, text="")
    answered = by_scores(asked, dict(zip(task.labels, logs.tolist(), strict=True)))
    return replace(answered, text=median_label(answered.label_scores)) if task.kind == "rating" else answered
