"""How much memory a training will need at its peak, before anything is trained.

One forward and backward pass over the largest pack is gone through by the very code that trains, on tensors that have
shapes and no values; every allocation is counted while it lives. Nothing is computed and nothing large is allocated, so
that a model that does not fit can be planned for as well.

Example:
    >>> shape = load_base_shape("smollm2-135m", dtype="bfloat16")
    >>> training_memory(shape, jobs, engine=EngineConfig()).total / 2**30
    2.4
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mta.bank_plan import BankPlan
from mta.base_model import BaseModel
from mta.config import EngineConfig
from mta.forward import answer_nll
from mta.lora.adapter import AdapterSum, Recipe
from mta.lora.attach import attached
from mta.packing import TokenRow, fill_packs, pack_rows
from mta.runtime import rss_bytes
from mta.training_plan import TrainJob

BYTES_PER_VALUE = 4


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on the device at the peak of a training, part by part."""

    weights: int
    """The base model."""
    slots: int
    """Adapters in training, their gradients and moments, and what lies beneath them."""
    largest_pass: int
    """What a forward and backward pass over the largest pack holds at its peak, besides these."""
    tokens: int
    """Tokens of that pack."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.slots + self.largest_pass


def training_memory(shape: BaseModel, jobs: Sequence[TrainJob], *, engine: EngineConfig) -> TrainingMemory:
    """Return what training these jobs together takes; see `training.train`.

    Args:
        shape: the base model without values, from `load_base_shape`.
        jobs: what will be trained; frozen adapters beneath are not made, only their rank counts.
        engine: packing.
    """
    rows = largest_pack([row for job in jobs for row in (*job.rows, *job.held_out)], engine)
    parameters = list(shape.model.parameters())
    with parameters[0].fake_mode, _Allocations() as counted:
        like = torch.empty(0, device=shape.device, dtype=torch.promote_types(shape.dtype, torch.float32))
        slots = min(engine.slots, len(jobs))
        stack = jobs[0].kind.make(
            jobs, shape.shapes(jobs[0].config.target_modules), slots=slots, like=like, compute_dtype=shape.dtype
        )
        moments = [torch.zeros_like(stack.parameters) for _ in range(2)]
        before = counted.now
        pack = pack_rows(rows, device=shape.device)  # as if no beginnings were shared
        stack.route([row % slots for row in pack.rows], pack.lengths, pack.people)
        with attached(shape.model, stack):
            answer_nll(shape, pack).sum().backward()  # type: ignore[no-untyped-call]
        largest_pass = counted.peak - before
        del moments
    return TrainingMemory(
        weights=sum(one.numel() * one.element_size() for one in parameters),
        slots=before,
        largest_pass=largest_pass,
        tokens=sum(pack.lengths),
    )


def largest_pack(rows: Sequence[TokenRow], engine: EngineConfig) -> list[TokenRow]:
    """Return the pack that no pack of these rows exceeds: the longest rows, as many as the token budget allows."""
    longest_first = sorted(rows, key=len, reverse=True)
    return fill_packs(longest_first, len, tokens_per_batch=engine.tokens_per_batch)[0]


@dataclass(frozen=True, slots=True)
class BankCosts:
    """What the training of a bank would be and take."""

    asked: int
    """Anchors asked for."""
    anchors: int
    """Anchors that would be trained."""
    examples: int
    updates: int
    """Of all anchors together, unless some stop early."""
    longest_row: int
    """Tokens of the longest training example."""
    file_bytes: int
    """Of the anchors' adapters on disk."""
    device: str
    memory: TrainingMemory
    process_bytes: int
    """What the process holds besides, now: libraries and encoders."""

    def rows(self) -> list[tuple[str, str]]:
        """Return the costs as texts, for a table."""
        memory = self.memory
        return [
            ("anchors asked / trained", f"{self.asked} / {self.anchors}"),
            ("training examples", f"{self.examples:,}"),
            ("updates", f"{self.updates:,}"),
            ("longest example", f"{self.longest_row:,} tokens"),
            ("adapters on disk", _size(self.file_bytes)),
            (f"memory of the {self.device} at the peak", _size(memory.total)),
            ("  base model", _size(memory.weights)),
            ("  adapters in training", _size(memory.slots)),
            (f"  one pass over {memory.tokens:,} tokens", _size(memory.largest_pass)),
            ("libraries and encoders, in main memory", _size(self.process_bytes)),
        ]


def bank_costs(shape: BaseModel, plan: BankPlan, *, engine: EngineConfig) -> BankCosts:
    """Return what training a planned bank would be and take.

    Args:
        shape: the base model without values, from `load_base_shape`.
        plan: the bank's anchors.
        engine: packing.

    Raises:
        DataError: no anchor has a training example.
    """
    rank = plan.config.population_train.rank if plan.config.population_beneath else 0
    jobs = plan.jobs(beneath=Recipe("planned", rank, lambda: AdapterSum(())) if rank else None)
    shapes = shape.shapes(plan.config.train.target_modules).values()
    return BankCosts(
        asked=plan.asked,
        anchors=len(jobs),
        examples=sum(len(job.rows) for job in jobs),
        updates=sum(job.total for job in jobs),
        longest_row=max(len(row) for job in jobs for row in job.rows),
        file_bytes=BYTES_PER_VALUE * len(jobs) * sum(plan.config.train.rank * (a + b) for a, b in shapes),
        device=shape.device.type,
        memory=training_memory(shape, jobs, engine=engine),
        process_bytes=rss_bytes(),
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made inside the block, from when they are made to when the last user lets go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
