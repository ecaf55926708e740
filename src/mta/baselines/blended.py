"""Merge-then-adapt, blended with the merged anchors alone: half of each next token's probability comes from either.

The adapted adapter is shown more of the user's items than the merged anchors are. Where the user's few items have
taught it something that the anchors do not know, it wins; where they have led it astray, the anchors hold it back.
Nothing more is trained or stored than for merge-then-adapt; an answer costs the reading of one further prompt.

What blending alone is worth shows in the same over the population adapter, and what in it is personal in the same with
another person's adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mta.baselines.population import population, population_adapt
from mta.baselines.swapped import swapped
from mta.personalize import Personalized, PersonalizedUsers, Resources, personalize_users, renderer
from mta.records import User


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendConfig:
    """How the two are asked."""

    adapted_history_k: int = 5
    """Items shown to the adapted adapter; never fewer than the run's own number, which the other one is shown."""
    adapted_share: float = 0.5
    """Of the adapted adapter in the probability of a next token; the rest is the other one's."""


USUAL = BlendConfig()


def blended(users: Sequence[User], resources: Resources, *, config: BlendConfig = USUAL) -> PersonalizedUsers:
    """Serve every user with merge-then-adapt and the merged anchors alone, token by token.

    A user who was not adapted is served with the merged anchors, asked in both ways.

    Raises:
        BankError, ConfigError, DataError: see `personalize_users`.
    """
    whole = personalize_users(users, resources, name="mta")
    return _blend(whole, personalize_users(users, resources, adapted=False, name="merged-only"), config)


def population_blended(
    users: Sequence[User], resources: Resources, *, config: BlendConfig = USUAL
) -> PersonalizedUsers:
    """Serve every user with an adapter over the population adapter, and with that one alone, token by token.

    Raises:
        BankError, ConfigError, DataError, AdapterError: see `population_adapt`.
    """
    return _blend(population_adapt(users, resources), population(users, resources), config)


def swapped_blended(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with the blend of the next person's adapters, see `swapped_user`.

    Raises:
        BankError, ConfigError, DataError: see `personalize_users`, or all users are one person.
    """
    return swapped(blended(users, resources), users, resources.task)


def _blend(adapted: PersonalizedUsers, other: PersonalizedUsers, config: BlendConfig) -> PersonalizedUsers:
    return replace(
        adapted,
        users={name: _blend_one(person, other.users[name], config) for name, person in adapted.users.items()},
    )


def _blend_one(adapted: Personalized, other: Personalized, config: BlendConfig) -> Personalized:
    prompts = replace(adapted.prompts, history_k=max(config.adapted_history_k, adapted.prompts.history_k))
    shown_more = replace(adapted, prompts=prompts, render=renderer(adapted.task, prompts))
    shares = (config.adapted_share, 1 - config.adapted_share)
    return replace(adapted, mixture=tuple(zip(shares, (shown_more, other), strict=True)))
