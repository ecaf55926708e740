"""Anchors' answers averaged in place of their adapters: each anchor's next token by itself, mixed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mta.bank import Bank
from mta.baselines.combined import SMALLEST_WEIGHT
from mta.errors import ConfigError
from mta.lora.adapter import recipe
from mta.merging import Match
from mta.personalize import Personalized, PersonalizedUsers, Resources, merged_recipe, personalize_users
from mta.records import User


def averaged_anchors(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with the mean of what the user's anchors, each alone, go on with, by their merge weights.

    Where the weights do not sum to 1, what is missing goes to what lies beneath the anchors.

    Raises:
        ConfigError: the weights were searched for, and are no shares.
        BankError, DataError: see `personalize_users`.
    """
    if resources.merge.weights == "search":
        raise ConfigError(
            "weights 'search' may be negative and are no shares of anything that could be averaged; take other "
            "--weights, for example evidence"
        )
    served = personalize_users(users, resources, adapted=False)
    return replace(
        served,
        users={name: _mixture(person, resources.need_bank(), resources) for name, person in served.users.items()},
    )


def _mixture(person: Personalized, bank: Bank, resources: Resources) -> Personalized:
    match = person.match
    if match is None:
        raise TypeError(f"user {person.user.user_id!r} has no anchors")
    ways = [
        (weight, replace(person, adapter=merged_recipe(_alone(match, anchor), bank, resources.merge)))
        for anchor, weight in zip(match.anchor_ids, match.weights, strict=True)
    ]
    beneath = recipe(bank.population) if bank.population else None
    ways.append((1 - sum(match.weights), replace(person, adapter=beneath)))
    kept = sorted((way for way in ways if way[0] > SMALLEST_WEIGHT), key=lambda way: -way[0])
    total = sum(weight for weight, _ in kept)
    return replace(person, mixture=tuple((weight / total, way) for weight, way in kept))


def _alone(match: Match, anchor: str) -> Match:
    similarity = match.similarities[match.anchor_ids.index(anchor)]
    return replace(match, anchor_ids=(anchor,), similarities=(similarity,), weights=(1.0,))
