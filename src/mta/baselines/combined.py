"""Which way to serve a user does best on the user's own items: one is chosen, or all are mixed.

The ways are the base model, the adapter for everybody, the merged anchors, and merge-then-adapt. None of the user's
items was learned by a way that is asked about it (`cross_fit`); queries play no part. "gated" takes the way under which
the items are likeliest, of equal ones the simplest: a gate that keeps personalization from doing harm. "averaged" mixes
the answers with the ways' posterior weights.

`averaged_anchors` mixes in the same manner what a user's anchors answer one by one, in place of merging them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mta.baselines.population import population
from mta.cross_fit import FOLDS, held_out_nats
from mta.lora.adapter import Recipe, recipe
from mta.merging import Match, posterior_weights
from mta.personalize import (
    Personalized,
    PersonalizedUsers,
    Resources,
    match_users,
    merged_recipe,
    personalize_users,
    renderer,
)
from mta.records import User

WAYS = ("base", "population", "merged-only", "mta")
"""From the simplest to the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineConfig:
    """How ways are combined."""

    how: Literal["gated", "averaged"]
    folds: int = FOLDS
    """Folds of a user's items, each held out once."""
    temperature: float = 1.0
    """Of "averaged": what the items' log-likelihood is divided by; 1 is Bayes' rule with equal priors."""


def combined(users: Sequence[User], resources: Resources, *, config: CombineConfig, name: str) -> PersonalizedUsers:
    """Serve every user with the way, or the mixture of ways, that her own items speak for.

    A user of fewer than two items, on whom nothing can be judged, gets merge-then-adapt.

    Args:
        users: target users with histories.
        resources: base model, bank and its pool.
        config: choose or mix.
        name: sub-folder of the adapters trained without each fold.

    Raises:
        BankError, DataError, AdapterError: see `personalize_users` and `population`.
    """
    served = _served(users, resources)
    merged = {user_id: _recipe(person) for user_id, person in served["merged-only"].users.items()}
    nats, seconds = held_out_nats(
        users,
        resources,
        {
            "base": {},
            "population": {user_id: _recipe(person) for user_id, person in served["population"].users.items()},
            "merged-only": merged,
        },
        adapted={"mta": merged},
        name="folds",
        folds=config.folds,
    )
    people = {}
    for user in users:
        weights = _weights(nats.get(user.user_id), config)
        people[user.user_id] = _mixed(user.user_id, served, weights)
    whole = served["mta"]
    return replace(
        whole,
        users=people,
        train_seconds=whole.train_seconds + seconds,
        shared_seconds=whole.shared_seconds + served["population"].shared_seconds,
        chosen_by_users=_counts(nats, users, config),
    )


def _served(users: Sequence[User], resources: Resources) -> dict[str, PersonalizedUsers]:
    render = renderer(resources.task, resources.prompts)
    bare = {user.user_id: Personalized(user, resources.task, None, render, resources.prompts) for user in users}
    return {
        "base": PersonalizedUsers(bare),
        "population": population(users, resources),
        "merged-only": personalize_users(users, resources, adapted=False, name="merged-only"),
        "mta": personalize_users(users, resources, name="mta"),
    }


def _recipe(person: Personalized) -> Recipe:
    if not isinstance(person.adapter, Recipe):
        raise TypeError(f"got {type(person.adapter).__name__}, wanted Recipe")
    return person.adapter


def _weights(nats: Mapping[str, float] | None, config: CombineConfig) -> dict[str, float]:
    """Return the weights of the ways with any, the largest first."""
    if nats is None:
        return {"mta": 1.0}
    if config.how == "gated":
        return {min(WAYS, key=lambda way: nats[way]): 1.0}
    even = torch.full((len(WAYS),), 1 / len(WAYS), dtype=torch.float64)
    costs = torch.tensor([nats[way] for way in WAYS], dtype=torch.float64)
    weights = posterior_weights(even, costs, temperature=config.temperature).tolist()
    found = {way: weight for way, weight in zip(WAYS, weights, strict=True) if weight > SMALLEST_WEIGHT}
    total = sum(found.values())
    return {way: weight / total for way, weight in sorted(found.items(), key=lambda pair: -pair[1])}


SMALLEST_WEIGHT = 1e-3
"""Ways with less are not asked."""


def _mixed(user_id: str, served: Mapping[str, PersonalizedUsers], weights: Mapping[str, float]) -> Personalized:
    ways = [(weight, served[way].users[user_id]) for way, weight in weights.items()]
    if len(ways) == 1:
        return ways[0][1]
    return replace(served["mta"].users[user_id], mixture=tuple(ways))


def _counts(nats: Mapping[str, Mapping[str, float]], users: Sequence[User], config: CombineConfig) -> dict[str, int]:
    """Return for how many users each way has the most weight, ways in order."""
    first = Counter(next(iter(_weights(nats.get(user.user_id), config))) for user in users)
    return {way: first[way] for way in WAYS if first[way]}


def averaged_anchors(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with the answers of the user's anchors, each alone, mixed by their merge weights.

    Where the weights do not sum to 1, what is missing goes to the answers of what lies beneath the anchors.

    Raises:
        BankError, DataError: see `personalize_users`.
    """
    bank = resources.need_bank()
    matches = match_users(users, resources)
    served = personalize_users(users, resources, adapted=False)
    people = {}
    for user in users:
        match, person = matches[user.user_id], served.users[user.user_id]
        ways = [
            (weight, replace(person, adapter=merged_recipe(_alone(match, anchor), bank, resources.merge)))
            for anchor, weight in zip(match.anchor_ids, match.weights, strict=True)
        ]
        if (rest := 1 - sum(match.weights)) > SMALLEST_WEIGHT:
            beneath = recipe(bank.population) if bank.population else None
            ways.append((rest, replace(person, adapter=beneath)))
        kept = sorted((way for way in ways if way[0] > SMALLEST_WEIGHT), key=lambda way: -way[0])
        total = sum(weight for weight, _ in kept)
        people[user.user_id] = replace(person, mixture=tuple((weight / total, way) for weight, way in kept))
    return replace(served, users=people)


def _alone(match: Match, anchor: str) -> Match:
    similarity = match.similarities[match.anchor_ids.index(anchor)]
    return replace(match, anchor_ids=(anchor,), similarities=(similarity,), weights=(1.0,))
