"""Every method by its name in the tables. A method is one function `(users, resources) -> PersonalizedUsers`.

Merge-then-adapt and what is left of it without one part are rows of `PARTS`; whoever keeps, restores or writes adapters
asks that table. Controls that use no model are in `baselines.simple`. A new rival is one function here or in a file of
its own, and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from mta.baselines.population import population
from mta.config import MergeConfig
from mta.errors import unknown_name
from mta.personalize import Personalized, PersonalizedUsers, Resources, personalize_users, renderer
from mta.records import User

Method = Callable[[Sequence[User], Resources], PersonalizedUsers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a method puts on top of the base model."""

    merged: bool = True
    """The user's nearest anchors, merged."""
    adapted: bool = True
    """An adapter trained on the user's own examples."""
    linear: bool = False
    """Factors are mixed one by one, as in the authors' code, whatever merge is asked for."""

    def merging(self, asked: MergeConfig) -> MergeConfig:
        """Return how this method merges where `asked` is asked for."""
        return replace(asked, mode="linear") if self.linear else asked


PARTS: Mapping[str, Parts] = MappingProxyType(
    {
        "merged-only": Parts(adapted=False),
        "merged-only-linear": Parts(adapted=False, linear=True),
        "adapt-only": Parts(merged=False),
        "mta": Parts(),
        "mta-linear": Parts(linear=True),
    }
)
"""Merge-then-adapt, whole and in parts."""


def base_model(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """The bare base model with the same prompts."""
    render = renderer(resources.task, resources.prompts)
    return PersonalizedUsers(
        {user.user_id: Personalized(user, resources.task, None, render, resources.prompts) for user in users}
    )


def _of_parts(name: str, parts: Parts) -> Method:
    def method(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
        asked = replace(resources, merge=parts.merging(resources.merge))
        return personalize_users(users, asked, merged=parts.merged, adapted=parts.adapted, name=name)

    return method


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "base": base_model,
        "population": population,
        **{name: _of_parts(name, parts) for name, parts in PARTS.items()},
    }
)


def find_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        NotFound: there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
