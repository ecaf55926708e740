"""What one user's training consists of, decided by the user's own id, data and settings alone.

A `TrainJob` and pure functions of (seed, job id, number of examples, step): which examples an update takes, at what
learning rate. A job can therefore be cut anywhere and continued from its step count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mta.config import TrainConfig
from mta.lora.adapter import Recipe
from mta.packing import TokenRow
from mta.seeds import stable_seed


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
