"""What one user's training consists of, decided by the user's own id, data and settings alone.

A `TrainJob` and pure functions of (seed, job id, number of examples, step): which examples an update takes, at what
learning rate. A job can therefore be cut anywhere and continued from its step count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mta.config import TrainConfig
from mta.lora.adapter import Recipe, adapter_from_tensors
from mta.lora.stacked import Shapes, Stack, TrainableStack
from mta.packing import TokenRow
from mta.seeds import stable_seed


class Slots(Stack, Protocol):
    """S slots of values in training, each one user's; row s of `parameters` holds all that slot s trains."""

    slots: int
    parameters: Tensor
    """(S, P)"""
    gradients: Tensor
    """(S, P), filled by backward passes"""

    def start(self, slot: int, job: TrainJob) -> None:
        """Put a job's first values and what lies beneath it into a slot, over whatever it held."""

    def prepare(self, slot: int, job: TrainJob, step: int) -> None:
        """Get a slot ready for its job's update number `step`; called before each, after a checkpoint too."""

    def route(self, slots: Sequence[int], lengths: Sequence[int], people: Sequence[int]) -> None:
        """Say for each row of the next pack: its slot, its tokens, and whose it is among the job's people."""

    def regularize(self, slot: int) -> None:
        """Add to a slot's gradient what its loss has besides the likelihood of answers; called once an update."""

    def clear(self, slot: int) -> None:
        """Zero everything a slot holds."""

    def export(self, slot: int, values: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return what a slot has trained as named tensors on the CPU, from `values (P,)` where given."""


class Kind(Protocol):
    """What jobs train: an adapter each, or something else that a rival learns."""

    @property
    def name(self) -> str:
        """Short name for messages and fingerprints."""

    def fingerprint(self, job: TrainJob) -> Any:
        """Return as JSON what decides a job's result besides its rows, settings and `frozen`."""

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> Slots:
        """Make empty slots for jobs of equal rank, alpha, targets and train_a, with the device and dtype of `like`."""

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return how far from doing nothing that is what a slot exported."""


class LoraSlots(TrainableStack):
    """Slots that train a LoRA adapter each."""

    def start(self, slot: int, job: TrainJob) -> None:
        """Start a new adapter in a slot, over the job's frozen composition."""
        key = job.job_id if job.init_key is None else job.init_key
        self.fill(slot, seed=job.config.seed, key=key, frozen=job.frozen.make() if job.frozen else None)

    def prepare(self, slot: int, job: TrainJob, step: int) -> None:
        """Draw the input features that the update leaves out."""
        if job.config.dropout:
            self.drop(slot, job.config.dropout, seed=job.config.seed, key=job.job_id, step=step)

    def regularize(self, slot: int) -> None:
        """Add nothing: the loss is the likelihood of the answers alone; features left out get no gradient."""
        self.mask_gradients(slot)


@dataclass(frozen=True, slots=True)
class Lora:
    """The usual kind of job: one LoRA adapter over a frozen composition."""

    name: str = "lora"

    def fingerprint(self, job: TrainJob) -> Any:
        """Nothing: rows, settings and what lies beneath decide everything."""
        return None

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> LoraSlots:
        """Make empty slots; see `Kind.make`."""
        config = jobs[0].config
        return LoraSlots(
            shapes,
            slots=slots,
            rank=config.rank,
            scaling=config.scaling,
            frozen_rank=max((job.frozen.rank for job in jobs if job.frozen), default=0),
            train_a=config.train_a,
            device=like.device,
            dtype=like.dtype,
            compute_dtype=compute_dtype,
        )

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the Frobenius norm of the adapter's delta."""
        return adapter_from_tensors(tensors, where=self.name).norm()


LORA = Lora()


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One adapter to train."""

    job_id: str
    """Unique; with the seed it decides the order of examples and, unless `init_key` is given, the initial A."""
    rows: tuple[TokenRow, ...]
    config: TrainConfig
    held_out: tuple[TokenRow, ...] = ()
    """Rows for early stopping; () trains all epochs."""
    frozen: Recipe | None = None
    """Finished adapter beneath, made when the job gets a slot, applied un-merged and never changed."""
    init_key: str | None = None
    """Jobs with one key start from one A (a bank's anchors); None uses the job id."""
    kind: Kind = LORA
    """What is trained; jobs of one call must share it."""

    @property
    def total(self) -> int:
        """Updates unless it stops early."""
        return total_updates(len(self.rows), self.config)


def updates_per_epoch(examples: int, config: TrainConfig) -> int:
    """Return how many updates one pass over the examples takes (at least 1)."""
    if config.drop_last:
        return max(1, examples // config.batch_size)
    return math.ceil(examples / config.batch_size)


def total_updates(examples: int, config: TrainConfig) -> int:
    """Return how many updates a job makes unless it stops early."""
    per_epoch = updates_per_epoch(examples, config)
    updates = config.epochs * per_epoch
    if updates < config.min_updates:
        updates = math.ceil(config.min_updates / per_epoch) * per_epoch
    return min(updates, config.max_updates) if config.max_updates else updates


def update_examples(examples: int, config: TrainConfig, *, job_id: str, step: int) -> list[int]:
    """Return the indices of the examples that update number `step` (from 0) averages over.

    Each epoch is a new permutation, seeded by (seed, job id, epoch).
    """
    per_epoch = updates_per_epoch(examples, config)
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(stable_seed(config.seed, "order", job_id, epoch))
    order: list[int] = torch.randperm(examples, generator=generator).tolist()
    return order[place * config.batch_size : (place + 1) * config.batch_size]


def learning_rate(config: TrainConfig, *, step: int, total: int) -> float:
    """Return the learning rate of update number `step` (from 0) of `total`.

    Warm-up rises over ceil(total * warmup_ratio) updates and never spends an update at zero, which matters when there
    are three; then cosine or linear decay to zero, or constant.
    """
    warmup = math.ceil(total * config.warmup_ratio)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr
