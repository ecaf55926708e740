"""Stage 1: choose anchors from a pool, train all their meta-LoRAs at once, and write the bank.

Example:
    >>> bank = build_bank(pool, task, base, Path("bank"), config=BankConfig(), encoders=encoders)
    >>> len(bank.anchors), bank.asked
    (48, 50)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mta.anchors import AnchorSelection, select_anchors
from mta.bank import (
    MANIFEST,
    SCHEMA,
    AnchorRecord,
    Bank,
    adapters_checksum,
    history_fingerprint,
    load_bank,
    read_manifest,
    write_bank,
)
from mta.base_model import BaseModel
from mta.config import BankConfig, EngineConfig, TrainConfig, to_dict
from mta.encoders import Encoder, document_vectors, embed_users
from mta.errors import AdapterError, BankError, ConfigError, DataError
from mta.files import sha256_json
from mta.lora.adapter import Adapter, recipe
from mta.packing import TokenRow
from mta.progress import Progress, silent
from mta.records import User
from mta.tasks.task import Task
from mta.training_plan import TrainJob
from mta.training_store import StoredAdapter, TrainedSet, train_and_store
from mta.user_rows import UserRows, user_rows
from mta.vector_cache import VectorCache

log = logging.getLogger(__name__)

SHARED_INIT = "bank"
"""Key of the initial A that all anchors of a bank share."""
POPULATION_JOB = "population"


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of stage 1 and 2, and where their vectors are kept."""

    selection: Encoder
    """Makes the user vectors that are clustered (Eq. 2)."""
    matching: Encoder
    """Makes the vectors that are compared (Eq. 4)."""
    cache: VectorCache | None = None


def build_bank(
    pool: Sequence[User],
    task: Task,
    base: BaseModel,
    folder: Path,
    *,
    config: BankConfig,
    encoders: Encoders,
    engine: EngineConfig | None = None,
    min_anchors: int = 1,
    progress: Progress = silent,
) -> Bank:
    """Choose anchors from a pool, train them all at once, and write the bank.

    A killed build continues when it is called again with the same arguments; a finished bank of the same pool and
    settings is loaded as it is.

    Args:
        pool: users to choose from; none of them may be a target.
        task: what is asked.
        base: the frozen model.
        folder: where the bank goes.
        config: everything that decides it.
        encoders: loaded encoders; they must be those `config` names.
        engine: packing.
        min_anchors: refuse, before any training, to build a bank of fewer.
        progress: told about each stage.

    Raises:
        ConfigError: the folder holds a bank of another task or base model, the bank size does not fit the pool, or
            fewer than `min_anchors` are kept.
        DataError: no anchor has training examples.
        AdapterError: the population adapter beneath diverged.
    """
    engine = engine or EngineConfig()
    _refuse_other_bank(folder, task, base)
    wanted = _build_fingerprint(pool, task, base, config, encoders)
    if (finished := _finished(folder, wanted, base)) is not None:
        shutil.rmtree(folder / "work", ignore_errors=True)  # there if an earlier call was killed at its very end
        return finished
    selection = _select(pool, task, config, encoders, progress)
    if len(selection.anchors) < min_anchors:
        raise ConfigError(
            f"{len(selection.anchors)} of {config.anchors.bank_size} anchors are kept (an anchor needs more than "
            f"{config.anchors.min_history} history items), but {min_anchors} are merged per user; lower --top-k or "
            "--min-history, or give a larger pool"
        )
    anchors = [pool[anchor.index] for anchor in selection.anchors]
    population = _population_beneath(pool, task, base, folder, config, engine, progress)
    data = {
        user.user_id: user_rows(base.tokens, task, user, train=config.train, prompts=config.prompts) for user in anchors
    }
    if cut := sum(rows.cut_rows for rows in data.values()):
        log.warning("%d training prompts of the anchors were cut to fit the model, their history first", cut)
    trained = _train_anchors(data, base, folder, config, population, engine, progress)
    vectors = document_vectors(
        encoders.matching, anchors, task.document_text, document=config.match.document, cache=encoders.cache
    )
    bank = _assemble(folder, task, base, config, selection, anchors, data, trained, vectors, encoders, population)
    write_bank(bank, build_fingerprint=wanted, dropped=selection.dropped, seconds=trained.seconds)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return bank


def _refuse_other_bank(folder: Path, task: Task, base: BaseModel) -> None:
    """Refuse to replace a bank that cannot be an earlier state of the one asked for; a damaged one may be replaced."""
    try:
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    except BankError:
        return
    if manifest is None:
        return
    found, wanted = manifest["base"]["fingerprint"], base.fingerprint
    if manifest["task"] != task.task_id or found != wanted:
        raise ConfigError(
            f"{folder} holds a bank of task {manifest['task']!r} on base model {manifest['base']['name']!r} "
            f"({found[:12]}), not of {task.task_id!r} on {base.name!r} ({wanted[:12]}); choose another folder, or "
            "remove that bank first"
        )


def _finished(folder: Path, wanted: str, base: BaseModel) -> Bank | None:
    """Load the bank that is in the folder if it is whole and the one wanted."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        if read_manifest(folder).get("build_fingerprint") != wanted:
            return None
        return load_bank(folder, base=base)
    except BankError as error:
        log.warning("building the bank again: %s", error)
        return None


def _build_fingerprint(
    pool: Sequence[User], task: Task, base: BaseModel, config: BankConfig, encoders: Encoders
) -> str:
    people = [(user.user_id, history_fingerprint(user)) for user in pool]
    base_parts = [base.fingerprint, base.tokens.fingerprint, str(base.dtype)]
    models = [*base_parts, encoders.selection.fingerprint, encoders.matching.fingerprint]
    return sha256_json([SCHEMA, task.task_id, to_dict(config), people, models])


def _select(
    pool: Sequence[User], task: Task, config: BankConfig, encoders: Encoders, progress: Progress
) -> AnchorSelection:
    users = [user for user in pool if user.history]
    if not users:
        raise DataError(f"none of the {len(pool)} pool users has a history; give a pool with histories")
    places = [index for index, user in enumerate(pool) if user.history]
    with progress("user vectors") as step:
        vectors = embed_users(encoders.selection, users, task.item_text, cache=encoders.cache, on_progress=step)
    found = select_anchors(
        vectors, [len(user.history) for user in users], user_ids=[user.user_id for user in users], config=config.anchors
    )
    return replace(found, anchors=tuple(replace(anchor, index=places[anchor.index]) for anchor in found.anchors))


def _train_anchors(
    data: Mapping[str, UserRows],
    base: BaseModel,
    folder: Path,
    config: BankConfig,
    population: Adapter | None,
    engine: EngineConfig,
    progress: Progress,
) -> TrainedSet:
    beneath = recipe(population) if population else None
    key = SHARED_INIT if config.shared_init else None
    jobs = [
        TrainJob(name, rows.rows, config.train, held_out=rows.held_out, frozen=beneath, init_key=key)
        for name, rows in data.items()
        if rows.rows
    ]
    if not jobs:
        raise DataError(
            f"none of the {len(data)} anchors has a training example; check that the histories belong to the task "
            "(LaMP-1 needs items with a citation, or --allow-proxy)"
        )
    with progress("bank training") as step:
        return train_and_store(
            base,
            jobs,
            folder / "work" / "anchors",
            engine=engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )


def _population_beneath(
    pool: Sequence[User],
    task: Task,
    base: BaseModel,
    folder: Path,
    config: BankConfig,
    engine: EngineConfig,
    progress: Progress,
) -> Adapter | None:
    if not config.population_beneath:
        return None
    train = config.population_train
    rows: list[TokenRow] = []
    held_out: list[TokenRow] = []
    for user in pool:
        made = user_rows(base.tokens, task, user, train=train, prompts=config.prompts)
        rows += made.rows
        held_out += made.held_out
    stored = train_population(
        base, rows, train, folder / "work" / "population", engine=engine, held_out=held_out, progress=progress
    )
    return stored.adapters[POPULATION_JOB].load(base)


def train_population(
    base: BaseModel,
    rows: Sequence[TokenRow],
    train: TrainConfig,
    folder: Path,
    *,
    engine: EngineConfig,
    held_out: Sequence[TokenRow] = (),
    progress: Progress = silent,
) -> TrainedSet:
    """Train one adapter on the rows of many users together; resumable like any other training.

    Raises:
        AdapterError: the training diverged.
    """
    job = TrainJob(POPULATION_JOB, tuple(rows), train, held_out=tuple(held_out))
    with progress("population training") as step:
        trained = train_and_store(
            base, [job], folder, engine=engine, on_progress=lambda p: step(p.updates, p.total_updates)
        )
    note = trained.adapters[POPULATION_JOB].note
    if note.diverged:
        raise AdapterError(
            f"the population adapter diverged after {note.updates} updates at learning rate {train.lr}: its gradients "
            "were no finite numbers; lower the learning rate of the bank (--bank-lr)"
        )
    return trained


def _assemble(
    folder: Path,
    task: Task,
    base: BaseModel,
    config: BankConfig,
    selection: AnchorSelection,
    anchors: Sequence[User],
    data: Mapping[str, UserRows],
    trained: TrainedSet,
    vectors: Tensor,
    encoders: Encoders,
    population: Adapter | None,
) -> Bank:
    records: list[AnchorRecord] = []
    adapters: dict[str, Adapter] = {}
    rows: list[int] = []
    for place, (chosen, user) in enumerate(zip(selection.anchors, anchors, strict=True)):
        stored = trained.adapters.get(user.user_id)
        if stored is None or stored.note.diverged:
            log.warning("anchor %s left out: %s", user.user_id, "it diverged" if stored else "no training examples")
            continue
        adapters[user.user_id] = stored.load(base)
        records.append(_record(chosen.cluster, user, data[user.user_id], stored))
        rows.append(place)
    if not adapters:
        raise BankError("no anchor was trained successfully; lower the learning rate or check the data")
    return Bank(
        folder=folder,
        task=task,
        config=config,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        anchors=tuple(records),
        adapters=adapters,
        vectors=vectors[rows],
        matching_encoder=encoders.matching.fingerprint,
        population=population,
        checksum=adapters_checksum(adapters, population),
        asked=selection.asked,
    )


def _record(cluster: int, user: User, rows: UserRows, stored: StoredAdapter) -> AnchorRecord:
    return AnchorRecord(
        user_id=user.user_id,
        cluster=cluster,
        history_size=len(user.history),
        examples=len(rows.rows),
        source=rows.source,
        data_fingerprint=history_fingerprint(user),
        updates=stored.note.updates,
        tokens=stored.note.tokens,
        last_loss=stored.note.last_loss,
        held_out_losses=stored.note.held_out_losses,
    )
