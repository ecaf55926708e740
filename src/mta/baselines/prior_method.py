"""Any method that scores labels, corrected by what the person usually answers (see `label_prior`).

The strength of the correction, and where asked for the temperature of the scores, are chosen on users of the pool
(`judges`): they are personalized by the same method, and their queries, whose answers the pool's file holds, say what
fits. Targets play no part. Where labels have no meaning of their own there is no prior, and a temperature alone; so it
is for free text, where it divides the scores of next tokens and changes no greedy answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from mta.baselines.text_temperature import at_temperature, choose_temperature
from mta.evaluation.predict import predict
from mta.judges import asked_more, draw_judges, judges_aside
from mta.personalize import Method, PersonalizedUsers, Resources
from mta.records import Prediction, User
from mta.tasks.task import Task

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
                finish=_finish(resources.task, choice, ratios[name]),
            )
            for name, person in people.users.items()
        },
        shared_seconds=people.shared_seconds + seconds,
        chosen={**people.chosen, **_chosen(choice, resources, temperatures)},
    )


def _finish(task: Task, choice: StrengthChoice, ratio: Mapping[str, float]) -> Callable[[Prediction], Prediction]:
    """Return the last change to a person's answers."""
    if not task.labels:
        return partial(at_temperature, temperature=choice.temperature)
    return partial(with_prior, ratio=ratio, strength=choice.strength, temperature=choice.temperature)


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
    if resources.task.labels:
        choice = choose_strength(list(made.rows), ratios, strengths, temperatures)
    else:
        choice = StrengthChoice(0.0, {}, choose_temperature(list(made.rows)))
    log.info(
        "label scores: prior strength %g, temperature %g, chosen on %d pool users",
        *(choice.strength, choice.temperature, len(judges)),
    )
    return choice, people.train_seconds


def judges_of(resources: Resources) -> list[User]:
    """Return the users of the pool on whom strength and temperature are chosen.

    Those whom the bank has set aside, who are also asked about items of their own; else any who are no anchors.
    """
    bank, task = resources.bank, resources.task
    if bank and (aside := judges_aside(resources.pool, task, bank.config)):
        return [asked_more(judge, task) for judge in aside]
    anchors = [anchor.user_id for anchor in bank.anchors] if bank else []
    return draw_judges(resources.pool, task, most=JUDGES, others_than=anchors)
