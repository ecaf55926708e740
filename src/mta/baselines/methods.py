"""Every method by its name in the tables. A method is one function `(users, resources) -> PersonalizedUsers`.

Controls that use no model are in `baselines.simple`. A new rival is one function here or in a file of its own, and one
line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from mta.baselines.population import population
from mta.config import MergeConfig
from mta.errors import unknown_name
from mta.personalize import Personalized, PersonalizedUsers, Resources, personalize_users, renderer
from mta.records import User

Method = Callable[[Sequence[User], Resources], PersonalizedUsers]


def base_model(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """The bare base model with the same prompts."""
    render = renderer(resources.task, resources.prompts)
    return PersonalizedUsers(
        {user.user_id: Personalized(user, resources.task, None, render, resources.prompts) for user in users}
    )


def merged_only(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """The merged anchors without adaptation."""
    return personalize_users(users, resources, adapted=False)


def adapt_only(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """The user's own adapter on the bare base model."""
    return personalize_users(users, resources, merged=False, name="adapt-only")


def mta(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Merge, then adapt: the whole method, with the merge the resources ask for."""
    return personalize_users(users, resources, name="mta")


def merged_only_linear(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """`merged_only` with factors mixed one by one, as in the authors' code."""
    return merged_only(users, _linear(resources))


def mta_linear(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """`mta` with factors mixed one by one, as in the authors' code."""
    return personalize_users(users, _linear(resources), name="mta-linear")


def _linear(resources: Resources) -> Resources:
    return replace(resources, merge=MergeConfig(mode="linear", scale=resources.merge.scale))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "base": base_model,
        "population": population,
        "merged-only": merged_only,
        "merged-only-linear": merged_only_linear,
        "adapt-only": adapt_only,
        "mta": mta,
        "mta-linear": mta_linear,
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
