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

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mta.base_model import BaseModel, base_shape
from mta.config import EngineConfig
from mta.errors import ModelError
from mta.forward import answer_nll
from mta.lora.attach import attached
from mta.memory_at_hand import PassMemory, free_bytes
from mta.packing import TokenRow, fill_packs, pack_rows
from mta.training_plan import LORA, TrainJob

log = logging.getLogger(__name__)

BYTES_PER_VALUE = 4
MARGIN = 1.25
"""Free memory for each byte foretold; processes held up to a fifth more than that."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on the device at the peak of a training, part by part."""

    weights: int
    """The base model."""
    slots: int
    """Adapters in training, their gradients and moments, and what lies beneath them."""
    largest_pass: int
    """What a forward and backward pass over the largest pack holds at its peak, besides these."""
    holes: int
    """What may lie unused between all these in main memory before it is handed back, about."""
    tokens: int
    """Tokens of that pack."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.slots + self.largest_pass + self.holes


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
    weights = sum(one.numel() * one.element_size() for one in parameters)
    return TrainingMemory(
        weights=weights,
        slots=before,
        largest_pass=largest_pass,
        holes=PassMemory.holes(shape.device, weights + before + largest_pass),
        tokens=sum(pack.lengths),
    )


def largest_pack(rows: Sequence[TokenRow], engine: EngineConfig) -> list[TokenRow]:
    """Return the pack that no pack of these rows exceeds: the longest rows, as many as the token budget allows."""
    longest_first = sorted(rows, key=len, reverse=True)
    return fill_packs(longest_first, len, tokens_per_batch=engine.tokens_per_batch)[0]


def fit_passes(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> EngineConfig:
    """Return the settings with as many tokens in a pass as the device's free memory takes.

    Only LoRA jobs are planned for, and only where a rough upper bound does not say already that all is well: going
    through a pass takes some seconds.

    Args:
        base: the loaded base model.
        jobs: what will be trained together.
        engine: packing as asked for.

    Raises:
        ModelError: not even the longest row fits.
    """
    there = free_bytes(base.device)
    free = int(there / MARGIN)
    rows = [row for job in jobs for row in (*job.rows, *job.held_out)]
    if jobs[0].kind is not LORA or not rows or rough_bytes(base, jobs, engine) <= free:
        return engine
    shape = base_shape(base.model.config, base.tokens.tokenizer, name=base.name, device=base.device, dtype=base.dtype)
    longest, tokens = max(map(len, rows)), engine.tokens_per_batch
    while True:
        needed = training_memory(shape, jobs, engine=replace(engine, tokens_per_batch=tokens))
        if needed.slots + needed.largest_pass <= free:
            break
        if tokens <= longest:
            raise ModelError(
                f"training would take {size_text(needed.slots)} for {min(engine.slots, len(jobs))} adapters and "
                f"{size_text(needed.largest_pass)} for one row of {longest} tokens; {size_text(there)} are free, "
                "of which a fifth should stay so - take shorter prompts (--max-tokens), a smaller number format "
                "(--dtype bfloat16) or fewer slots"
            )
        tokens = max(longest, tokens // 2)
    if tokens < engine.tokens_per_batch:
        log.warning(
            "%s of memory are free: at most %d tokens in a pass instead of %d",
            size_text(there),
            tokens,
            engine.tokens_per_batch,
        )
    return replace(engine, tokens_per_batch=tokens)


def rough_bytes(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> int:
    """Return more bytes than training these jobs takes besides the weights, from a few products.

    For each token what goes into and out of every linear layer, three times over for what lies between them; attention
    weights of its whole row; for each answer token four times the vocabulary in float32; for each slot values,
    gradient and two moments.
    """
    rows = largest_pack([row for job in jobs for row in (*job.rows, *job.held_out)], engine)
    head = base.model.get_output_embeddings()
    linears = [one for one in base.model.modules() if isinstance(one, torch.nn.Linear) and one is not head]
    widths = [one.out_features + one.in_features for one in linears]
    config = base.model.config.get_text_config()
    heads = config.num_hidden_layers * config.num_attention_heads
    tokens, answers = sum(map(len, rows)), sum(len(row.answer) for row in rows)
    size = torch.empty(0, dtype=base.dtype).element_size()
    passing = size * (3 * sum(widths) * tokens + heads * sum(len(row) ** 2 for row in rows))
    ranks = 4 * jobs[0].config.rank + max((job.frozen.rank for job in jobs if job.frozen), default=0)
    held = BYTES_PER_VALUE * min(engine.slots, len(jobs)) * ranks * sum(widths)
    return int(passing + 4 * BYTES_PER_VALUE * answers * config.vocab_size + held)


def size_text(count: int) -> str:
    """Return a number of bytes as people read it."""
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
