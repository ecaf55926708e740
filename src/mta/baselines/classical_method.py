"""The classical control as methods: one fit on the pool, two rows, with and without the person's own habits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from mta.baselines.classical import CLASSICAL_ROWS, fit_classical
from mta.encoders import load_encoder
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer
from mta.records import User


def classical_method(name: str) -> Callable[[Sequence[User], Resources], PersonalizedUsers]:
    """Return the method of one of `CLASSICAL_ROWS`."""
    return partial(_serve, personal=CLASSICAL_ROWS[name])


def _serve(users: Sequence[User], resources: Resources, *, personal: bool) -> PersonalizedUsers:
    encoder = resources.encoder or load_encoder(resources.match.encoder, device=resources.base.device)
    fitted = fit_classical(
        resources.task, resources.pool, encoder=encoder, cache=resources.cache, progress=resources.progress
    )
    render = renderer(resources.task, resources.prompts)
    return PersonalizedUsers(
        {
            user.user_id: Personalized(
                user,
                resources.task,
                None,
                render,
                resources.prompts,
                answers=partial(fitted.answers, user, personal=personal),
            )
            for user in users
        },
        chosen=fitted.chosen if personal else {},
    )
