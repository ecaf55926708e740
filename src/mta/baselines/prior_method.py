"""Any method that scores labels, corrected by what the person usually answers (see `label_prior`).

The strength of the correction, and where asked for the temperature of the scores, are chosen on users of the pool who
are no anchors: they are personalized by the same method, and their queries, whose answers the pool's file holds, say
what fits. Targets play no part. Where labels have no meaning of their own there is no prior, and a temperature alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from mta.baselines.label_prior import (
    STRENGTHS,
    TEMPERATURES,
    StrengthChoice,
    choose_strength,
    log_prior_ratio,
    pool_shares,
    prior_fits,
    with_prior,
)
from mta.data.people import find_people, rule_for
from mta.evaluation.predict import predict
from mta.personalize import Method, PersonalizedUsers, Resources
from mta.records import Query, User
from mta.seeds import stable_seed

log = logging.getLogger(__name__)

JUDGES = 32
"""Users of the pool on whom the strength is chosen, at most."""
FEWEST_JUDGES = 2
"""People it takes; a method may also need a second person, as the swap of adapters does."""
UNJUDGED_STRENGTH = 1.0
"""Strength where there are fewer: Bayes' rule as it stands."""


def with_label_prior(method: Method) -> Method:
    """Return the method with every answer corrected by the person's label prior."""
    return partial(_serve, method, temperatures=(1.0,))


def with_calibration(method: Method) -> Method:
    """Return the method with label scores divided by a temperature, and corrected by the prior where there is one."""
    return partial(_serve, method, temperatures=TEMPERATURES)


def _serve(
    method: Method, users: Sequence[User], resources: Resources, *, temperatures: Sequence[float]
) -> PersonalizedUsers:
    judges = judges_of(resources)
    ratios = _ratios([*judges, *users], resources)
    choice, seconds = _choose(method, resources, judges=judges, ratios=ratios, temperatures=temperatures)
    people = method(users, resources)
    return replace(
        people,
        users={
            name: replace(
                person,
                finish=partial(
                    with_prior, ratio=ratios[name], strength=choice.strength, temperature=choice.temperature
                ),
            )
            for name, person in people.users.items()
        },
        shared_seconds=people.shared_seconds + seconds,
        chosen={**people.chosen, **_chosen(choice, resources, temperatures)},
    )


def _chosen(choice: StrengthChoice, resources: Resources, temperatures: Sequence[float]) -> dict[str, float]:
    """Return what was chosen, by name; what could not be chosen otherwise is left out."""
    strength = {"prior strength": choice.strength} if prior_fits(resources.task) else {}
    return {**strength, **({"temperature": choice.temperature} if len(temperatures) > 1 else {})}


def _ratios(users: Sequence[User], resources: Resources) -> dict[str, dict[str, float]]:
    """Return each user's log prior ratio, {} where the task has no prior."""
    if not prior_fits(resources.task):
        return {user.user_id: {} for user in users}
    shares = pool_shares(resources.task, resources.pool)
    return {user.user_id: log_prior_ratio(user, shares, resources.task) for user in users}


def _choose(
    method: Method,
    resources: Resources,
    *,
    judges: Sequence[User],
    ratios: Mapping[str, Mapping[str, float]],
    temperatures: Sequence[float],
) -> tuple[StrengthChoice, float]:
    """Choose on the judges; return the choice and the seconds that the judges' training took."""
    strengths = STRENGTHS if prior_fits(resources.task) else (0.0,)
    if len(judges) < FEWEST_JUDGES:
        unjudged = min(UNJUDGED_STRENGTH, max(strengths))
        log.warning(
            "besides the anchors, %d people of the pool have a query with an answer, and it takes %d to choose on; "
            "label priors get strength %g, label scores stay as they are",
            *(len(judges), FEWEST_JUDGES, unjudged),
        )
        return StrengthChoice(unjudged, {}), 0.0
    people = method(judges, resources)
    with resources.progress("label prior") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    choice = choose_strength(list(made.rows), ratios, strengths, temperatures)
    log.info(
        "label scores: prior strength %g, temperature %g, chosen on %d pool users",
        *(choice.strength, choice.temperature, len(judges)),
    )
    return choice, people.train_seconds


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
