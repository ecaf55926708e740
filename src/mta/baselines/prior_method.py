"""Any method that scores labels, corrected by what the person usually answers (see `label_prior`).

The strength of the correction is chosen on users of the pool who are no anchors: they are personalized by the same
method, and their queries, whose answers the pool's file holds, say which strength fits. Targets play no part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mta.baselines.label_prior import choose_strength, log_prior_ratio, pool_shares, with_prior
from mta.data.people import find_people, rule_for
from mta.evaluation.predict import predict
from mta.personalize import PersonalizedUsers, Resources
from mta.records import Query, User
from mta.seeds import stable_seed

log = logging.getLogger(__name__)

JUDGES = 32
"""Users of the pool on whom the strength is chosen, at most."""
FEWEST_JUDGES = 2
"""People it takes; a method may also need a second person, as the swap of adapters does."""
UNJUDGED_STRENGTH = 1.0
"""Strength where there are fewer: Bayes' rule as it stands."""


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
    choice = _strength(method, resources, ratio)
    people = method(users, resources)
    return replace(
        people,
        users={
            name: replace(person, finish=partial(with_prior, ratio=ratio(person.user), strength=choice.strength))
            for name, person in people.users.items()
        },
        shared_seconds=people.shared_seconds + choice.train_seconds,
        chosen={**people.chosen, "prior strength": choice.strength},
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """A strength, and what the training of those who judged it took."""

    strength: float
    train_seconds: float = 0.0


def _strength(
    method: Callable[[Sequence[User], Resources], PersonalizedUsers],
    resources: Resources,
    ratio: Callable[[User], dict[str, float]],
) -> _Choice:
    judges = judges_of(resources)
    if len(judges) < FEWEST_JUDGES:
        log.warning(
            "besides the anchors, %d people of the pool have a query with an answer, and it takes %d to choose on; "
            "label priors get strength %g",
            *(len(judges), FEWEST_JUDGES, UNJUDGED_STRENGTH),
        )
        return _Choice(UNJUDGED_STRENGTH)
    people = method(judges, resources)
    with resources.progress("label prior") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    choice = choose_strength(list(made.rows), {user.user_id: ratio(user) for user in judges})
    log.info("label prior: strength %g, chosen on %d pool users", choice.strength, len(judges))
    return _Choice(choice.strength, people.train_seconds)


def judges_of(resources: Resources) -> list[User]:
    """Return the users of the pool on whom a strength is chosen: with answered queries and a history, no anchors.

    Nobody is among them who is an anchor's person under another id, since that anchor's adapter has seen the answers;
    and of a person's several records one. Which of them depends on their ids alone. Queries without an answer are left
    out.
    """
    anchors = {anchor.user_id for anchor in resources.bank.anchors} if resources.bank else set()
    pool = {user.user_id: user for user in resources.pool}
    known = []
    for person in find_people(resources.pool, rule=rule_for(resources.task.task_id)):
        records = [replace(pool[name], queries=_answered(pool[name])) for name in person if pool[name].history]
        able = sorted((user for user in records if user.queries), key=_draw)
        if able and anchors.isdisjoint(person):
            known.append(able[0])
    return sorted(known, key=_draw)[:JUDGES]


def _draw(user: User) -> int:
    return stable_seed(0, "judge", user.user_id)


def _answered(user: User) -> tuple[Query, ...]:
    return tuple(query for query in user.queries if query.gold is not None)
