"""Stage 1: choose anchors from a pool, train all their meta-LoRAs at once, and write the bank.

Example:
    >>> bank = build_bank(pool, task, base, Path("bank"), config=BankConfig(), encoders=encoders)
    >>> len(bank.anchors), bank.asked
    (48, 50)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from mta.bank_plan import POPULATION_JOB, BankPlan, PlannedAnchor, plan_bank
from mta.base_model import BaseModel
from mta.config import BankConfig, EngineConfig, to_dict
from mta.encoders import Encoder, document_vectors
from mta.errors import AdapterError, BankError, ConfigError
from mta.files import sha256_json
from mta.folder_lock import alone_in_folder
from mta.lora.adapter import Adapter, recipe
from mta.progress import Progress, silent
from mta.records import User
from mta.tasks.task import Task
from mta.training_plan import TrainJob
from mta.training_store import StoredAdapter, TrainedSet, train_and_store
from mta.vector_cache import VectorCache

log = logging.getLogger(__name__)

WORK = "work"


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of stage 1 and 2, and where their vectors are kept."""

    selection: Encoder
    """Makes the user vectors that are clustered (Eq. 2)."""
    matching: Encoder
    """Makes the vectors that are compared (Eq. 4)."""
    cache: VectorCache | None = None


@alone_in_folder
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
    work: Path | None = None,
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
        work: where finished trainings wait for the bank. Builds that share a folder, for example banks of several
            sizes, train no anchor twice, and leave it; one inside `folder` is used and removed if not given.
        progress: told about each stage.

    Raises:
        ConfigError: the folder holds a bank of another task or base model, the bank size does not fit the pool, or
            fewer than `min_anchors` are kept.
        DataError: no anchor has training examples.
        AdapterError: the population adapter beneath diverged.
        StorageError: the folder cannot be written, or another call is at work there.
    """
    build = _Build(task, base, folder, work or folder / WORK, config, encoders, engine or EngineConfig(), progress)
    _refuse_other_bank(folder, task, base)
    wanted = _build_fingerprint(build, pool)
    if (finished := _finished(folder, wanted, base)) is not None:
        shutil.rmtree(folder / WORK, ignore_errors=True)  # there if an earlier call was killed at its very end
        return finished
    if (folder / MANIFEST).exists():
        log.warning("the bank in %s is of other settings or another pool; it will be replaced", folder)
    plan = plan_bank(
        pool,
        task,
        base.tokens,
        config=config,
        encoder=encoders.selection,
        cache=encoders.cache,
        min_anchors=min_anchors,
        progress=progress,
    )
    if plan.cut_rows:
        log.warning("%d training prompts of the anchors were cut to fit the model, their history first", plan.cut_rows)
    beneath = _train_beneath(build, plan) if config.population_beneath else None
    population = beneath.adapters[POPULATION_JOB].load(base) if beneath else None
    trained = _train_anchors(build, plan, population)
    kept = [anchor for anchor in plan.anchors if _succeeded(anchor, trained)]
    if not kept:
        raise BankError("no anchor was trained successfully; lower the learning rate or check the data")
    bank = _assemble(build, plan.asked, kept, trained, population)
    if beneath:
        note = beneath.adapters[POPULATION_JOB].note
        bank = replace(
            bank,
            train_seconds=trained.seconds + beneath.seconds,
            population_updates=note.updates,
            population_tokens=note.tokens,
        )
    write_bank(bank, build_fingerprint=wanted, dropped=plan.dropped)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return bank


@dataclass(frozen=True, slots=True)
class _Build:
    """What one bank is made of, apart from its users."""

    task: Task
    base: BaseModel
    folder: Path
    work: Path
    config: BankConfig
    encoders: Encoders
    engine: EngineConfig
    progress: Progress


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


def _build_fingerprint(build: _Build, pool: Sequence[User]) -> str:
    base, encoders = build.base, build.encoders
    people = [(user.user_id, history_fingerprint(user)) for user in pool]
    base_parts = [base.fingerprint, base.tokens.fingerprint, str(base.dtype)]
    models = [*base_parts, encoders.selection.fingerprint, encoders.matching.fingerprint]
    return sha256_json([SCHEMA, build.task.task_id, to_dict(build.config), people, models])


def _train_anchors(build: _Build, plan: BankPlan, population: Adapter | None) -> TrainedSet:
    jobs = plan.jobs(beneath=recipe(population) if population else None)
    with build.progress("bank training") as step:
        return train_and_store(
            build.base,
            jobs,
            build.work / "anchors",
            engine=build.engine,
            on_progress=lambda p: step(p.updates, p.total_updates),
        )


def _succeeded(anchor: PlannedAnchor, trained: TrainedSet) -> bool:
    """Say whether an anchor gave an adapter; the log says why not."""
    stored = trained.adapters.get(anchor.user.user_id)
    if stored is not None and not stored.note.diverged:
        return True
    reason = "it diverged" if stored else "no training examples"
    log.warning("anchor %s left out: %s", anchor.user.user_id, reason)
    return False


def _train_beneath(build: _Build, plan: BankPlan) -> TrainedSet:
    """Train the population adapter that lies beneath all anchors."""
    job = plan.population_job(build.base.tokens)
    return train_population(build.base, job, build.work / "population", engine=build.engine, progress=build.progress)


def train_population(
    base: BaseModel, job: TrainJob, folder: Path, *, engine: EngineConfig, progress: Progress = silent
) -> TrainedSet:
    """Train an adapter on the rows of many users together (`population_job`); resumable like any other training.

    Raises:
        AdapterError: the training diverged.
    """
    with progress("population training") as step:
        trained = train_and_store(
            base, [job], folder, engine=engine, on_progress=lambda p: step(p.updates, p.total_updates)
        )
    note = trained.adapters[job.job_id].note
    if note.diverged:
        raise AdapterError(
            f"the population adapter diverged after {note.updates} updates at learning rate {job.config.lr}: its "
            "gradients were no finite numbers; lower the learning rate of the bank (--bank-lr)"
        )
    return trained


def _assemble(
    build: _Build, asked: int, kept: Sequence[PlannedAnchor], trained: TrainedSet, population: Adapter | None
) -> Bank:
    encoder, config = build.encoders.matching, build.config
    stored = {anchor.user.user_id: trained.adapters[anchor.user.user_id] for anchor in kept}
    adapters = {name: one.load(build.base) for name, one in stored.items()}
    return Bank(
        folder=build.folder,
        task=build.task,
        config=config,
        base_name=build.base.name,
        base_fingerprint=build.base.fingerprint,
        anchors=tuple(_record(anchor, stored[anchor.user.user_id]) for anchor in kept),
        adapters=adapters,
        vectors=document_vectors(
            encoder,
            [anchor.user for anchor in kept],
            build.task.document_text,
            document=config.match.document,
            cache=build.encoders.cache,
        ),
        matching_encoder=encoder.fingerprint,
        population=population,
        checksum=adapters_checksum(adapters, population),
        asked=asked,
        train_seconds=trained.seconds,
    )


def _record(anchor: PlannedAnchor, stored: StoredAdapter) -> AnchorRecord:
    return AnchorRecord(
        user_id=anchor.user.user_id,
        cluster=anchor.cluster,
        history_size=len(anchor.user.history),
        examples=len(anchor.rows.rows),
        source=anchor.rows.source,
        data_fingerprint=history_fingerprint(anchor.user),
        updates=stored.note.updates,
        tokens=stored.note.tokens,
        last_loss=stored.note.last_loss,
        held_out_losses=stored.note.held_out_losses,
    )
