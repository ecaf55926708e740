"""The control that tells task from taste: one adapter for everybody, from the anchors' data and as many tokens.

A gain over the base model that this adapter gives too is not personalization. Where the bank's anchors lie on a
population adapter of their own (`BankConfig.population_beneath`), methods that merge them rest on its training over the
whole pool as well; this control does not get those tokens, and the run card says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mta.bank_building import POPULATION_JOB, train_population
from mta.config import TrainConfig
from mta.errors import DataError
from mta.packing import TokenRow
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer, stack_recipes
from mta.records import User
from mta.training_plan import updates_per_epoch
from mta.user_rows import user_rows


def population(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with one adapter trained on all anchors' examples together.

    It is trained with the bank's population settings on the very rows of all anchors, for as many tokens as all anchors
    together were.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        AdapterError: the training diverged.
    """
    bank = resources.need_bank()
    pool = {user.user_id: user for user in resources.pool}
    missing = [name for name in bank.anchor_ids if name not in pool]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(bank.anchor_ids)} anchors are not in the pool (first: {missing[0]!r}); "
            "give the pool file the bank was built from"
        )
    anchors = replace(bank.config.train, held_out_share=0.0)
    train = replace(bank.config.population_train, held_out_share=0.0, min_updates=0, max_updates=0)
    data = [
        user_rows(resources.base.tokens, bank.task, pool[name], train=anchors, prompts=resources.prompts)
        for name in bank.anchor_ids
    ]
    rows = [row for made in data for row in made.rows]
    tokens = sum(anchor.tokens for anchor in bank.anchors if not anchor.retired)
    trained = train_population(
        resources.base,
        rows,
        same_tokens(train, rows, tokens),
        resources.folder / "population",
        engine=resources.engine,
        progress=resources.progress,
    )
    shared = trained.adapters[POPULATION_JOB].recipe(resources.base, rank=train.rank)
    adapter = stack_recipes([shared])
    render = renderer(resources.task, resources.prompts)
    people = {user.user_id: Personalized(user, resources.task, adapter, render, resources.prompts) for user in users}
    return PersonalizedUsers(people, trained.seconds, sum(made.cut_rows for made in data))


def same_tokens(train: TrainConfig, rows: Sequence[TokenRow], tokens: int) -> TrainConfig:
    """Return the settings under which training on `rows` sees about `tokens` tokens."""
    per_epoch = updates_per_epoch(len(rows), train)
    rows_per_update = min(len(rows), per_epoch * train.batch_size) / per_epoch  # dropped rows are not seen
    per_update = rows_per_update * sum(map(len, rows)) / len(rows)
    updates = max(1, round(tokens / per_update))
    return replace(train, epochs=math.ceil(updates / per_epoch), max_updates=updates)
