"""Which way to serve a user does best on the user's own items: one is chosen, or all are mixed.

The ways are the base model, the adapter for everybody, the merged anchors, and merge-then-adapt. No way that is asked
about an item has learned it (`cross_fit`, which keeps the adapters for that in `adapters/folds`); queries play no part.
"gated" takes the way under which the items are likeliest, of equal ones the simplest: a gate that keeps personalization
from doing harm. "averaged" averages the ways' next tokens by their posterior weights (`mixing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mta.baselines.population import population
from mta.cross_fit import FOLDS, held_out_nats
from mta.lora.adapter import Recipe
from mta.merging import posterior_weights
from mta.personalize import Personalized, PersonalizedUsers, Resources, personalize_users, renderer
from mta.records import User

WAYS = ("base", "population", "merged-only", "mta")
"""From the simplest to the whole."""
SMALLEST_WEIGHT = 1e-3
"""Ways with less are not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineConfig:
    """How ways are combined."""

    how: Literal["gated", "averaged"]
    folds: int = FOLDS
    """Folds of a user's items, each held out once."""
    temperature: float = 1.0
    """Of "averaged": what the items' log-likelihood is divided by; 1 is Bayes' rule with equal priors."""


def combined(users: Sequence[User], resources: Resources, *, config: CombineConfig) -> PersonalizedUsers:
    """Serve every user with the way, or the mixture of ways, that her own items speak for.

    A user of fewer than two items, on whom nothing can be judged, gets merge-then-adapt.

    Args:
        users: target users with histories.
        resources: base model, bank and its pool.
        config: choose or mix.

    Raises:
        ConfigError: merge weights are chosen on the users' own items.
        BankError, DataError, AdapterError: see `personalize_users` and `population`.
    """
    served = _served(users, resources)
    population, merged = (_recipes(served[way]) for way in ("population", "merged-only"))
    nats, seconds = held_out_nats(
        users,
        resources,
        {"base": {}, "population": population, "merged-only": merged},
        adapted={"mta": merged},
        folds=config.folds,
    )
    weights = {user.user_id: _weights(nats.get(user.user_id), config) for user in users}
    whole = served["mta"]
    return replace(
        whole,
        users={name: _combined(name, served, weights[name], config) for name in whole.users},
        train_seconds=whole.train_seconds + seconds,
        shared_seconds=whole.shared_seconds + served["population"].shared_seconds,
        chosen_by_users=_counts(weights),
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


def _recipes(people: PersonalizedUsers) -> dict[str, Recipe]:
    return {name: person.adapter for name, person in people.users.items() if isinstance(person.adapter, Recipe)}


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


def _combined(
    user_id: str, served: Mapping[str, PersonalizedUsers], weights: Mapping[str, float], config: CombineConfig
) -> Personalized:
    ways = tuple((weight, served[way].users[user_id]) for way, weight in weights.items())
    return ways[0][1] if config.how == "gated" else replace(served["mta"].users[user_id], mixture=ways)


def _counts(weights: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Return for how many users each way has the most weight, ways in order."""
    first = Counter(next(iter(each)) for each in weights.values())
    return {way: first[way] for way in WAYS if first[way]}
