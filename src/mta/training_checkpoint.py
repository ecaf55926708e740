"""Unfinished training on disk: the live slots, exactly, so that a killed call goes on where it was.

A checkpoint belongs to one set of jobs (data, settings, order) and one number of slots; any other call ignores it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mta.config import to_dict
from mta.errors import AdapterError
from mta.files import sha256_json
from mta.tensor_files import load_tensors, save_tensors
from mta.training_plan import TrainJob

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SlotState:
    """How far the job in one slot is; changed in place by the training loop."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    worse: int = 0
    """Epochs since the held-out loss was last at its best."""
    stopped: bool = False
    best: Tensor | None = None
    """(P,) parameter row with the lowest held-out loss so far."""

    def judge(self, loss: float, parameters: Tensor, *, patience: int) -> None:
        """Record a held-out loss; keep a copy of the best parameters, stop after `patience` worse losses."""
        if not self.held_out_losses or loss < min(self.held_out_losses):
            self.best, self.worse = parameters.detach().clone(), 0
        else:
            self.worse += 1
            self.stopped = self.worse >= patience
        self.held_out_losses.append(loss)


@dataclass(frozen=True, slots=True)
class TrainingState:
    """An interrupted training call."""

    fingerprint: str
    next_job: int
    finished: list[str]
    tokens: int
    seconds: float
    """Wall time spent so far."""
    slots: dict[int, tuple[str, SlotState]]
    """slot -> (job id, state)"""
    parameters: Tensor
    """(live slots, P), in order of slot; the moments likewise."""
    first_moments: Tensor
    second_moments: Tensor


def jobs_fingerprint(jobs: Sequence[TrainJob], slots: int) -> str:
    """Return a SHA-256 over everything that decides the jobs' results and their way through the slots."""
    return sha256_json([slots, *map(job_fingerprint, jobs)])


def job_fingerprint(job: TrainJob) -> str:
    """Return a SHA-256 over everything that decides one job's result, the base model aside."""
    frozen = job.frozen.fingerprint if job.frozen else None
    kind = [job.kind.name, job.kind.fingerprint(job)]
    head = [job.job_id, to_dict(job.config), frozen, job.init_key, kind, len(job.rows), len(job.held_out)]
    digest = hashlib.sha256(json.dumps(head).encode())
    for row in (*job.rows, *job.held_out):
        digest.update(repr((row.prompt, row.answer, row.person)).encode())
    return digest.hexdigest()


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint atomically."""
    tensors = {
        "parameters": state.parameters,
        "first_moments": state.first_moments,
        "second_moments": state.second_moments,
    }
    slots = {}
    for slot, (job_id, slot_state) in state.slots.items():
        if slot_state.best is not None:
            tensors[f"best.{slot}"] = slot_state.best
        plain = {name: getattr(slot_state, name) for name in _PLAIN_FIELDS}
        slots[str(slot)] = {"job_id": job_id, **plain}
    note = {
        "fingerprint": state.fingerprint,
        "next_job": state.next_job,
        "finished": state.finished,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "slots": slots,
    }
    save_tensors(path, tensors, metadata={"state": json.dumps(note)})


_PLAIN_FIELDS = ("step", "tokens", "losses", "held_out_losses", "worse", "stopped")


def load_state(path: Path, fingerprint: str) -> TrainingState | None:
    """Read a checkpoint; None if there is none, or it is damaged or of other jobs (said in the log)."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        note = json.loads(metadata["state"])
        found = note["fingerprint"]
    except (AdapterError, KeyError, TypeError, ValueError) as error:
        log.warning("ignoring the checkpoint %s and starting over: %s", path, error)
        return None
    if found != fingerprint:
        log.warning("ignoring the checkpoint %s: it belongs to other data, settings or another base model", path)
        return None
    slots = {}
    for slot, saved in note["slots"].items():
        state = SlotState(**{name: saved[name] for name in _PLAIN_FIELDS}, best=tensors.get(f"best.{slot}"))
        slots[int(slot)] = (saved["job_id"], state)
    empty = torch.zeros(0)
    return TrainingState(
        fingerprint=fingerprint,
        next_job=note["next_job"],
        finished=note["finished"],
        tokens=note["tokens"],
        seconds=note["seconds"],
        slots=slots,
        parameters=tensors.get("parameters", empty),
        first_moments=tensors["first_moments"],
        second_moments=tensors["second_moments"],
    )
