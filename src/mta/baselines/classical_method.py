"""The classical control as methods: one fit on the pool, two rows, with and without the person's own habits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mta.baselines.classical import CLASSICAL_ROWS, fit_classical
from mta.baselines.simple import without_model
from mta.encoders import load_encoder
from mta.personalize import PersonalizedUsers, Resources
from mta.records import User


def classical_method(name: str) -> Callable[[Sequence[User], Resources], PersonalizedUsers]:
    """Return the method of one of `CLASSICAL_ROWS`."""
    return partial(_serve, personal=CLASSICAL_ROWS[name])


def _serve(users: Sequence[User], resources: Resources, *, personal: bool) -> PersonalizedUsers:
    encoder = resources.encoder or load_encoder(resources.match.encoder, device=resources.base.device)
    fitted = fit_classical(
        resources.task, resources.pool, encoder=encoder, cache=resources.cache, progress=resources.progress
    )
    people = without_model(users, resources, partial(fitted.answers, personal=personal))
    return replace(people, chosen=fitted.chosen if personal else {})
