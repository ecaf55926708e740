"""OPPU: one LoRA per user, trained from scratch on the user's whole history; nothing is shared between users.

Published form: a LoRA of rank 8 on the query and value projections, optionally over an adapter trained on other users'
data ("task adapter"), with k = 0 or more retrieved items in the prompts of training and answering alike.

Every user is a job of its own. In the authors' released script the list of training examples is made once, outside the
loop over users, and never emptied, so that each user also trains on all users before; here a user's rows are her own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mta.baselines.population import check_beneath, population_adapter, standing_on
from mta.config import ALL_LINEAR, QUERY_VALUE
from mta.personalize import PersonalizedUsers, Resources, adapt_over
from mta.records import User


@dataclass(frozen=True, slots=True, kw_only=True)
class OppuConfig:
    """What is OPPU's own; learning rate, schedule, epochs and batch are those of the run's adaptation."""

    rank: int = 8
    """Rank r (published: 8)."""
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Linear layers with an adapter: all of them, as the others here; published: query and value."""
    history_k: int | None = None
    """Items shown in the prompts of training and answering; None takes the run's."""
    task_adapt: str = "none"
    """What lies beneath: "none", or "population", the adapter of the population control."""


PUBLISHED = OppuConfig(target_modules=QUERY_VALUE)


def oppu(users: Sequence[User], resources: Resources, *, config: OppuConfig, name: str) -> PersonalizedUsers:
    """Train an adapter for each user from scratch and serve the user with it.

    Args:
        users: with histories.
        resources: base model and settings; the bank and its pool where `config.task_adapt` asks for them.
        config: what is OPPU's own.
        name: sub-folder of the trained adapters.

    Raises:
        DataError: a population adapter is asked for and an anchor is not in the pool.
        ConfigError: the population adapter changes layers that are not among `config.target_modules`.
    """
    prompts = resources.prompts
    if config.history_k is not None:
        prompts = replace(prompts, history_k=config.history_k)
    adapt = resources.adapt
    train = replace(
        adapt,
        form="lora",
        rank=config.rank,
        alpha=adapt.scaling * config.rank,
        target_modules=config.target_modules,
    )
    asked = replace(resources, prompts=prompts, adapt=train)
    if config.task_adapt == "none":
        return adapt_over(users, asked, beneath={}, name=name)
    check_beneath(resources, config.target_modules)
    shared = population_adapter(resources)
    people = adapt_over(users, asked, beneath={user.user_id: shared.recipe for user in users}, name=name)
    return standing_on(shared, people)
