"""The control that tells task from taste: one adapter for everybody, from the bank's data and as many tokens.

A gain over the base model that this adapter gives too is not personalization. It is trained on the anchors' rows, for
as many tokens as all anchors together; where these lie on a population adapter of their own
(`BankConfig.population_beneath`), on the rows of everybody in the pool but judges, for as many tokens as that one and
all anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mta.bank_building import train_population
from mta.bank_plan import POPULATION_JOB, pool_rows, population_job
from mta.config import TrainConfig
from mta.errors import ConfigError, DataError
from mta.judges import without_judges
from mta.lora.adapter import Recipe
from mta.packing import TokenRow
from mta.personalize import Personalized, PersonalizedUsers, Resources, adapt_over, renderer
from mta.records import User
from mta.training_plan import updates_per_epoch
from mta.user_rows import UserRows, user_rows


@dataclass(frozen=True, slots=True)
class PopulationAdapter:
    """One adapter for everybody."""

    recipe: Recipe
    seconds: float
    """Wall time of its training."""
    cut_rows: int
    """Training prompts that were cut to fit."""


def population(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with one adapter trained on all examples that the bank was made of.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        AdapterError: the training diverged.
    """
    shared = population_adapter(resources)
    render = renderer(resources.task, resources.prompts)
    people = {
        user.user_id: Personalized(user, resources.task, shared.recipe, render, resources.prompts) for user in users
    }
    return PersonalizedUsers(people, cut_rows=shared.cut_rows, shared_seconds=shared.seconds)


def population_adapt(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Adapt every user over the population adapter, with the updates that merge-then-adapt gets over its anchors.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        ConfigError: the population adapter changes layers that adaptation does not.
        AdapterError: the training of the population adapter diverged.
    """
    return _adapt_over(users, resources, matched=False, name="population-adapt")


def population_matched_adapt(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Adapt every user over a population adapter that saw the bank's tokens in the updates beneath merge-then-adapt.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        ConfigError: the population adapter changes layers that adaptation does not.
        AdapterError: the training of the population adapter diverged.
    """
    return _adapt_over(users, resources, matched=True, name="population-matched-adapt")


def _adapt_over(users: Sequence[User], resources: Resources, *, matched: bool, name: str) -> PersonalizedUsers:
    check_beneath(resources, resources.adapt.target_modules, matched=matched)
    shared = population_adapter(resources, matched=matched)
    people = adapt_over(users, resources, beneath={user.user_id: shared.recipe for user in users}, name=name)
    return standing_on(shared, people)


def standing_on(shared: PopulationAdapter, people: PersonalizedUsers) -> PersonalizedUsers:
    """Return users adapted over a population adapter, what that one took counted too."""
    return replace(people, shared_seconds=shared.seconds, cut_rows=people.cut_rows + shared.cut_rows)


def check_beneath(resources: Resources, target_modules: Sequence[str], *, matched: bool = False) -> None:
    """Check, before anything is trained, that adapters on these layers can lie on the population adapter.

    Raises:
        ConfigError: it changes layers that are not among them.
    """
    config = resources.need_bank().config
    shared = (config.train if matched else config.population_train).target_modules
    if missing := [name for name in shared if name not in target_modules]:
        raise ConfigError(
            f"the users' adapters would lie on a population adapter that changes {', '.join(missing)}, but theirs "
            f"change {', '.join(target_modules)} only; give both the same target_modules"
        )


def population_adapter(resources: Resources, *, matched: bool = False) -> PopulationAdapter:
    """Train one adapter on the very rows that the bank was made of, for as many tokens; see `bank_effort`.

    Args:
        resources: base model, bank and its pool.
        matched: take as many updates as lie beneath a user's own, each over as many rows as that needs, with the
            anchors' settings; otherwise the bank's population settings.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        AdapterError: the training diverged.
    """
    config, effort = resources.need_bank().config, bank_effort(resources)
    if matched:
        train = same_updates(config.train, effort.rows, effort.tokens, updates=effort.updates)
    else:
        train = same_tokens(config.population_train, effort.rows, effort.tokens)
    trained = train_population(
        resources.base,
        population_job(effort.rows, train),
        resources.folder / ("population-matched" if matched else "population"),
        engine=resources.engine,
        progress=resources.progress,
    )
    shared = trained.adapters[POPULATION_JOB].recipe(resources.base, rank=train.rank)
    return PopulationAdapter(shared, trained.seconds, effort.cut_rows)


@dataclass(frozen=True, slots=True)
class BankEffort:
    """What a bank was made of, which a rival may have too."""

    rows: tuple[TokenRow, ...]
    tokens: int
    """That all its trainings saw, an adapter beneath the anchors included."""
    updates: int
    """Beneath a user's own: of one anchor on average, and of the adapter beneath the anchors."""
    cut_rows: int
    """Training prompts that were cut to fit."""


def bank_effort(resources: Resources) -> BankEffort:
    """Return the rows of a bank's anchors, or of the whole pool where an adapter for everybody lies beneath them.

    Nothing is held out here: what the bank kept back for early stopping is among the rows.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
    """
    bank = resources.need_bank()
    data = anchor_rows(resources)
    active = [anchor for anchor in bank.anchors if not anchor.retired]
    tokens, updates = sum(anchor.tokens for anchor in active), round(fmean(anchor.updates for anchor in active))
    if bank.population:
        train = replace(bank.config.population_train, held_out_share=0.0)
        tokens, updates = tokens + bank.population_tokens, updates + bank.population_updates
        pool = without_judges(resources.pool, bank.task, bank.config)
        data = pool_rows(pool, bank.task, resources.base.tokens, train=train, prompts=resources.prompts)
    rows = tuple(row for made in data for row in made.rows)
    return BankEffort(rows, tokens, updates, sum(made.cut_rows for made in data))


def anchor_rows(resources: Resources, *, held_out_share: float = 0.0) -> list[UserRows]:
    """Return the training rows of every anchor in use, in bank order; nothing is held out unless asked for.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
    """
    bank = resources.need_bank()
    pool = {user.user_id: user for user in resources.pool}
    missing = [name for name in bank.anchor_ids if name not in pool]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(bank.anchor_ids)} anchors are not in the pool (first: {missing[0]!r}); "
            "give the pool file the bank was built from"
        )
    train = replace(bank.config.train, held_out_share=held_out_share)
    return [
        user_rows(resources.base.tokens, bank.task, pool[name], train=train, prompts=resources.prompts)
        for name in bank.anchor_ids
    ]


def same_tokens(train: TrainConfig, rows: Sequence[TokenRow], tokens: int) -> TrainConfig:
    """Return the settings under which training on all of `rows` sees about `tokens` tokens."""
    train = replace(train, held_out_share=0.0, min_updates=0, max_updates=0)
    updates = max(1, round(tokens / tokens_per_update(train, rows)))
    return replace(train, epochs=math.ceil(updates / updates_per_epoch(len(rows), train)), max_updates=updates)


def tokens_per_update(train: TrainConfig, rows: Sequence[TokenRow]) -> float:
    """Return the tokens that an update sees on average; rows that are dropped are not seen."""
    per_epoch = updates_per_epoch(len(rows), train)
    rows_per_update = min(len(rows), per_epoch * train.batch_size) / per_epoch
    return rows_per_update * sum(map(len, rows)) / len(rows)


def same_updates(train: TrainConfig, rows: Sequence[TokenRow], tokens: int, *, updates: int) -> TrainConfig:
    """Return the settings under which `updates` updates on `rows` see about `tokens` tokens."""
    per_row = sum(map(len, rows)) / len(rows)
    batch_size = max(1, min(len(rows), round(tokens / per_row / max(1, updates))))
    return same_tokens(replace(train, batch_size=batch_size), rows, tokens)
