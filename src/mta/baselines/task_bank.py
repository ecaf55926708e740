"""The bank's anchors trained once more, over an adapter that everybody shares: for rivals that stand on a task adapter.

Same people, rows, settings and initial values as in the bank; what lies beneath them is the `population` control's
adapter, trained on the anchors' own rows.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mta.bank import Bank, adapters_checksum
from mta.bank_plan import anchor_job
from mta.baselines.population import anchor_rows, check_beneath, population_adapter
from mta.errors import AdapterError
from mta.personalize import Resources
from mta.training_store import train_and_store

log = logging.getLogger(__name__)


def bank_over_population(resources: Resources, folder: Path) -> Bank:
    """Return the bank with every anchor's adapter trained over the population adapter, which lies beneath in `bank`.

    A bank whose anchors lie on a population adapter already is returned as it is.

    Args:
        resources: base model, bank and the pool its anchors come from.
        folder: where the adapters are kept; a killed call continues from it.

    Raises:
        DataError: an anchor of the bank is not in `resources.pool`.
        ConfigError: the population adapter changes layers that the anchors' adapters do not.
        AdapterError: the training of the population adapter, or of every anchor, diverged.
    """
    bank = resources.need_bank()
    if bank.population:
        return bank
    check_beneath(resources, bank.config.train.target_modules)
    shared = population_adapter(resources)
    jobs = [
        anchor_job(rows, bank.config, beneath=shared.recipe)
        for rows in anchor_rows(resources, held_out_share=bank.config.train.held_out_share)
    ]
    with resources.progress("sharer training") as step:
        trained = train_and_store(
            resources.base,
            jobs,
            folder,
            engine=resources.engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )
    good = {name: stored for name, stored in trained.adapters.items() if not stored.note.diverged}
    if not good:
        raise AdapterError(
            f"all {len(jobs)} anchors diverged over the population adapter at learning rate {bank.config.train.lr}; "
            "lower the learning rate of the bank (--bank-lr)"
        )
    for name in trained.adapters.keys() - good.keys():
        log.warning("anchor %s has no part in this: its training over the population adapter diverged", name)
    adapters = {name: stored.load(resources.base) for name, stored in good.items()}
    population = shared.recipe.make()
    return replace(
        bank,
        anchors=tuple(replace(one, retired=one.retired or one.user_id not in good) for one in bank.anchors),
        adapters=adapters,
        population=population,
        checksum=adapters_checksum(adapters, population),
        train_seconds=shared.seconds + trained.seconds,
    )
