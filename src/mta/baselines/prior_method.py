"""Any method that scores labels, corrected by what the person usually answers (see `label_prior`).

The strength of the correction is chosen on users of the pool who are no anchors: they are personalized by the same
method, and their queries, whose answers the pool's file holds, say which strength fits. Targets play no part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mta.baselines.label_prior import choose_strength, log_prior_ratio, pool_shares, with_prior
from mta.evaluation.predict import predict
from mta.personalize import PersonalizedUsers, Resources
from mta.records import Prediction, Query, User
from mta.seeds import stable_seed

log = logging.getLogger(__name__)

JUDGES = 32
"""Users of the pool on whom the strength is chosen, at most."""
UNJUDGED_STRENGTH = 1.0
"""Strength where no user of the pool has a query with an answer: Bayes' rule as it stands."""


def with_label_prior(
    method: Callable[[Sequence[User], Resources], PersonalizedUsers],
) -> Callable[[Sequence[User], Resources], PersonalizedUsers]:
    """Return the method with every answer corrected by the person's label prior."""
    return partial(_serve, method)


def _serve(
    method: Callable[[Sequence[User], Resources], PersonalizedUsers], users: Sequence[User], resources: Resources
) -> PersonalizedUsers:
    shares = pool_shares(resources.task, resources.pool)
    ratio = partial(log_prior_ratio, pool_shares=shares, task=resources.task)
    strength = _strength(method, resources, ratio)
    people = method(users, resources)
    return replace(
        people,
        users={
            name: replace(person, finish=partial(with_prior, ratio=ratio(person.user), strength=strength))
            for name, person in people.users.items()
        },
    )


def _strength(
    method: Callable[[Sequence[User], Resources], PersonalizedUsers],
    resources: Resources,
    ratio: Callable[[User], dict[str, float]],
) -> float:
    judges = judges_of(resources)
    if not judges:
        log.warning("no pool user besides the anchors has a query with an answer; label priors get strength 1")
        return UNJUDGED_STRENGTH
    people = method(judges, resources)
    with resources.progress("label prior") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    rows: list[Prediction] = list(made.rows)
    choice = choose_strength(rows, {user.user_id: ratio(user) for user in judges})
    log.info("label prior: strength %g, chosen on %d pool users", choice.strength, len(judges))
    return choice.strength


def judges_of(resources: Resources) -> list[User]:
    """Return the users of the pool on whom a strength is chosen: no anchors, with answered queries and a history.

    Which of them depends on their ids alone. Queries without an answer are left out.
    """
    anchors = {anchor.user_id for anchor in resources.bank.anchors} if resources.bank else set()
    known = [
        replace(user, queries=answered)
        for user in resources.pool
        if user.user_id not in anchors and user.history and (answered := _answered(user))
    ]
    return sorted(known, key=lambda user: stable_seed(0, "judge", user.user_id))[:JUDGES]


def _answered(user: User) -> tuple[Query, ...]:
    return tuple(query for query in user.queries if query.gold is not None)
