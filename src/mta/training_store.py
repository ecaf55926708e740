"""Training that survives being killed: each finished adapter is a file, the unfinished ones a checkpoint.

The same call again picks up where it was: finished jobs whose data, settings and base model are unchanged are read
back, the interrupted batch of jobs continues from its checkpoint with the same company, so that the result is that of
an unbroken run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mta.adapter_files import load_adapter, load_trained, save_trained
from mta.base_model import BaseModel
from mta.config import EngineConfig
from mta.errors import DataError, MtaError
from mta.files import read_json, safe_name, seal_broken, sealed, sha256_json, write_json
from mta.folder_lock import alone_in_folder
from mta.lora.adapter import Adapter, AdapterSum, Recipe, as_sum
from mta.lora.core import own_part
from mta.training import Trained, TrainProgress, finish_checkpoint, train
from mta.training_checkpoint import job_fingerprint, jobs_fingerprint
from mta.training_plan import TrainJob

log = logging.getLogger(__name__)

PLAN = "unfinished.json"
CHECKPOINT = "unfinished.checkpoint"
"""Not `.safetensors`, which is how the adapter of a user called "unfinished" ends."""
TIMING = "timing.json"


@dataclass(frozen=True, slots=True)
class TrainNote:
    """What is kept of one training besides the adapter."""

    job_id: str
    fingerprint: str
    """Of the job (data, settings, what lies beneath) and the base model."""
    updates: int
    tokens: int
    first_loss: float
    """Mean loss per answer token of the first update, before it."""
    last_loss: float
    held_out_losses: tuple[float, ...]
    diverged: bool
    delta_norm: float
    """How far from doing nothing: of an adapter, the Frobenius norm of its delta over all modules."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A trained adapter on disk."""

    path: Path
    note: TrainNote

    def load(self, base: BaseModel) -> Adapter:
        """Read the adapter; checks the file and the base model."""
        return load_adapter(self.path, base=base)[0]

    def tensors(self, base: BaseModel) -> dict[str, Tensor]:
        """Read what was trained, whatever kind it is; checks the file and the base model."""
        return load_trained(self.path, base=base)[0]

    def recipe(self, base: BaseModel, *, rank: int, beneath: Recipe | None = None) -> Recipe:
        """Return the adapter as a recipe that reads the file when it is needed.

        Args:
            base: the model it was trained on.
            rank: of the adapter.
            beneath: what it was trained over; needed for what was trained inside of that.
        """

        def made() -> AdapterSum:
            return as_sum(own_part(beneath.parts() if beneath else None, self.tensors(base)))

        return Recipe(self.note.fingerprint, rank, made)


@dataclass(frozen=True, slots=True)
class TrainedSet:
    """The results of one `train_and_store` call."""

    adapters: dict[str, StoredAdapter]
    """job id -> adapter, in the order of the jobs."""
    seconds: float
    """Wall time of the training that made them, interrupted calls included; users trained together share theirs by
    tokens, and adapters that have been replaced since count no more."""


@alone_in_folder
def train_and_store(
    base: BaseModel,
    jobs: Sequence[TrainJob],
    folder: Path,
    *,
    engine: EngineConfig,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedSet:
    """Train jobs, keep every adapter in `folder`, and read back those already there.

    Args:
        base: the frozen model.
        jobs: see `training.train`.
        folder: one file per job, named after its id; stale files of the same name are replaced.
        engine: packing.
        on_progress: called after every round.

    Raises:
        DataError, ConfigError: see `training.train`.
        StorageError: the folder cannot be written, or another call is at work there.
    """
    kept = {job.job_id: _stored(folder, job, base) for job in jobs}
    checkpoint = folder / CHECKPOINT
    while planned := _planned(folder, jobs, kept, engine):  # twice where a finished job's file has gone since
        batch = {job.job_id: job for job in planned}
        clock = _Clock(on_progress)
        for done in train(base, list(batch.values()), engine=engine, checkpoint=checkpoint, on_progress=clock):
            kept[done.job_id] = _store(folder, batch[done.job_id], done, base)
        _add_timing(folder, [stored.note for job_id in batch if (stored := kept[job_id])], clock.seconds)
        _forget_unfinished(folder)
    _forget_unfinished(folder)  # of a call that was killed when all was stored
    adapters = {job_id: stored for job_id, stored in kept.items() if stored}
    return TrainedSet(adapters, _seconds(folder, [stored.note for stored in adapters.values()]))


def _forget_unfinished(folder: Path) -> None:
    (folder / PLAN).unlink(missing_ok=True)
    finish_checkpoint(folder / CHECKPOINT)


class _Clock:
    """Passes progress on and remembers the wall time."""

    def __init__(self, on_progress: Callable[[TrainProgress], None] | None) -> None:
        self._on_progress = on_progress
        self.seconds = 0.0

    def __call__(self, progress: TrainProgress) -> None:
        self.seconds = progress.seconds
        if self._on_progress:
            self._on_progress(progress)


def _planned(
    folder: Path, jobs: Sequence[TrainJob], kept: dict[str, StoredAdapter | None], engine: EngineConfig
) -> list[TrainJob]:
    """Return the jobs to run: those of an interrupted call, exactly, or all that have no adapter yet."""
    missing = [job for job in jobs if kept[job.job_id] is None]
    if not missing:
        return []
    by_id = {job.job_id: job for job in jobs}
    plan = _read_plan(folder / PLAN)
    if plan and all(job_id in by_id for job_id in plan["jobs"]):
        again = [by_id[job_id] for job_id in plan["jobs"]]
        if jobs_fingerprint(again, engine.slots) == plan["fingerprint"] and set(map(id, missing)) <= set(
            map(id, again)
        ):
            return again
    fingerprint = jobs_fingerprint(missing, engine.slots)
    write_json(folder / PLAN, sealed({"jobs": [job.job_id for job in missing], "fingerprint": fingerprint}))
    return missing


def _read_plan(path: Path) -> dict[str, Any] | None:
    plan = _read_if_sound(path)
    return plan if isinstance(plan, dict) and {"jobs", "fingerprint"} <= set(plan) else None


def _read_if_sound(path: Path) -> Any:
    """Read a JSON file that can be done without; None where it is missing or damaged (said in the log)."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except DataError as error:
        log.warning("going on without %s: %s", path.name, error)
        return None
    if seal_broken(found):
        log.warning("going on without %s: it is damaged or was edited, its checksum differs", path)
        return None
    return found


def adapter_path(folder: Path, job_id: str) -> Path:
    """Return where `train_and_store` keeps a job's adapter in its folder."""
    return folder / f"{safe_name(job_id)}.safetensors"


def _fingerprint(job: TrainJob, base: BaseModel) -> str:
    return sha256_json([job_fingerprint(job), base.fingerprint, str(base.dtype)])


def _stored(folder: Path, job: TrainJob, base: BaseModel) -> StoredAdapter | None:
    """Return the job's adapter if a sound file of exactly this job is there."""
    path = adapter_path(folder, job.job_id)
    if not path.exists():
        return None
    try:
        _, note = load_trained(path, base=base)
    except MtaError as error:
        log.warning("training %s again: %s", job.job_id, error)
        return None
    if note.get("fingerprint") != _fingerprint(job, base):
        return None
    note["held_out_losses"] = tuple(note["held_out_losses"])
    return StoredAdapter(path, TrainNote(**{name: note[name] for name in TrainNote.__dataclass_fields__}))


def _store(folder: Path, job: TrainJob, done: Trained, base: BaseModel) -> StoredAdapter:
    note = TrainNote(
        job_id=done.job_id,
        fingerprint=_fingerprint(job, base),
        updates=done.updates,
        tokens=done.tokens,
        first_loss=done.losses[0],
        last_loss=done.losses[-1],
        held_out_losses=done.held_out_losses,
        diverged=done.diverged,
        delta_norm=job.kind.norm(done.tensors),
    )
    path = adapter_path(folder, job.job_id)
    save_trained(path, done.tensors, base=base, note=asdict(note))
    return StoredAdapter(path, note)


def _add_timing(folder: Path, notes: Sequence[TrainNote], seconds: float) -> None:
    """Write down what each of the jobs trained together took: its share of the tokens."""
    tokens = sum(note.tokens for note in notes)
    shares = {
        note.job_id: {"fingerprint": note.fingerprint, "seconds": seconds * note.tokens / tokens} for note in notes
    }
    write_json(folder / TIMING, sealed({"jobs": _timing(folder) | shares}))


def _seconds(folder: Path, notes: Sequence[TrainNote]) -> float:
    """Add up what exactly these trainings took; one that is not written down counts 0."""
    timing = _timing(folder)
    return sum(
        float(timing[note.job_id]["seconds"])
        for note in notes
        if timing.get(note.job_id, {}).get("fingerprint") == note.fingerprint
    )


def without_time(folder: Path, job_ids: Iterable[str], base: BaseModel) -> list[str]:
    """Name the jobs with an adapter in `folder` for which it is not written down what its training took.

    So it is where a call was killed between the last adapter and the times.
    """
    timing = _timing(folder)
    notes = {job_id: load_trained(adapter_path(folder, job_id), base=base)[1] for job_id in job_ids}
    return [name for name, note in notes.items() if timing.get(name, {}).get("fingerprint") != note["fingerprint"]]


def _timing(folder: Path) -> dict[str, dict[str, Any]]:
    timing = _read_if_sound(folder / TIMING)
    jobs = timing.get("jobs") if isinstance(timing, dict) else None
    found = jobs.items() if isinstance(jobs, dict) else ()
    return {name: one for name, one in found if isinstance(one, dict) and _is_time(one.get("seconds"))}


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
