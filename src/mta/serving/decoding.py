"""Rows of many users decoded together; rows join and leave between two tokens.

What a row answers depends on its own prompt, adapter, settings and seed alone, not on its company, up to the last
digits of floating-point sums.

Example:
    >>> batch = RunningBatch(base)
    >>> batch.join([Row(prompt, adapter, max_new_tokens=8)])
    >>> while batch.rows:
    ...     for row, token in batch.step():
    ...         print(row, token)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from mta.base_model import BaseModel
from mta.generation import prefill, routed
from mta.kv_cache import RoomyCache
from mta.lora.stacked import Finished
from mta.packing import left_pad

ROOM = 32
"""Tokens that a batch can grow by before its keys and values are copied."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest."""
    top_p: float = 1.0
    """Of the likeliest tokens, as many as hold this share of the probability."""
    seed: int = 0


GREEDY = Sampling()


@dataclass(slots=True, eq=False)
class Row:
    """One prompt being answered."""

    prompt: tuple[int, ...]
    adapter: Finished | None
    max_new_tokens: int
    sampling: Sampling = GREEDY
    made: list[int] = field(default_factory=list)
    """Tokens so far, the ending one included."""
    ended: bool = False
    """The model has ended its answer."""
    _generator: torch.Generator | None = None

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def finished(self) -> bool:
        """Whether nothing more is to come."""
        return self.ended or len(self.made) >= self.max_new_tokens

    def draw(self, logits: Tensor) -> int:
        """Draw the next token by its scores, (V,)."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.sampling.seed)
        scores = logits.double().cpu()  # so that the smallest temperature and share still say something
        shares = ((scores - scores.max()) / self.sampling.temperature).softmax(-1)
        return int(torch.multinomial(nucleus(shares, self.sampling.top_p), 1, generator=self._generator))


def nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Return probabilities (V,) with all but the likeliest tokens that hold `top_p` of them set to zero.

    Source: Holtzman et al. 2020, section 3.1 (nucleus sampling)
    """
    if top_p >= 1:
        return shares
    sorted_shares, order = shares.sort(descending=True, stable=True)
    before = sorted_shares.cumsum(-1) - sorted_shares
    return torch.zeros_like(shares).scatter(-1, order, sorted_shares.where(before < top_p, 0.0))


def cache_tokens(rows: Sequence[Row]) -> int:
    """Return the size in tokens, padding included, of the cache of these rows at their longest."""
    return len(rows) * max((row.longest for row in rows), default=0)


class RunningBatch:
    """The rows that are decoded together now.

    Keys and values of all rows lie in one cache, padded on the left; `_mask (B, T)` says which of them count.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.rows: list[Row] = []
        self._cache = RoomyCache(ROOM)
        self._mask = torch.empty(0, 0, dtype=torch.int64, device=base.device)
        self._held: ExitStack | None = None
        """Holds the rows' adapters attached from the first step after rows have joined or left; None: nothing is."""

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and add them to the batch."""
        self._detach()
        texts = [row.prompt for row in rows]
        prompts = left_pad(texts, pad_id=self.base.pad_id, device=self.base.device, least=2)  # so that there is a cache
        with routed(self.base, [row.adapter for row in rows]) as take:
            cache = prefill(self.base, prompts, room=ROOM, take=take)
        self._add(cache, prompts.attention_mask[:, :-1])
        self.rows.extend(rows)

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """Choose the next token of every row; rows that are finished with it leave.

        Returns:
            Each row with its token, in order.
        """
        last = [row.made[-1] if row.made else row.prompt[-1] for row in self.rows]
        self._mask = pad(self._mask, (0, 1), value=1)
        if self._held is None:
            self._held = ExitStack()
            self._held.enter_context(routed(self.base, [row.adapter for row in self.rows]))
        logits = self.base.model(
            input_ids=torch.tensor(last, device=self.base.device)[:, None],
            attention_mask=self._mask,
            position_ids=self._mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # (B, V)
        chosen = self._choose(logits)
        for row, token in chosen:
            row.made.append(token)
            row.ended = token in self.base.end_ids
        self.leave([row for row in self.rows if row.finished])
        return chosen

    def _choose(self, logits: Tensor) -> list[tuple[Row, int]]:
        likeliest = logits.argmax(-1).tolist()  # the host waits here, once a step
        return [
            (row, best if row.sampling.temperature == 0 else row.draw(scores))
            for row, best, scores in zip(self.rows, likeliest, logits, strict=True)
        ]

    @torch.inference_mode()
    def leave(self, rows: Sequence[Row]) -> None:
        """Take rows out, and what nobody's cache reaches back to."""
        if not rows:
            return
        self._detach()
        gone = set(map(id, rows))
        kept = [place for place, row in enumerate(self.rows) if id(row) not in gone]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            self._cache, self._mask = RoomyCache(ROOM), self._mask.new_empty(0, 0)
            return
        index = torch.tensor(kept, device=self.base.device)
        mask = self._mask[index]
        start = mask.shape[1] - int(mask.sum(dim=1).max())
        self._mask = mask[:, start:]
        for layer in self._cache.layers:
            layer.hold(layer.keys[index, :, start:], layer.values[index, :, start:])

    def _add(self, cache: RoomyCache, mask: Tensor) -> None:
        """Put the keys and values of new rows below those of the others, all padded on the left to one length."""
        if not self.rows:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            mine.hold(_below(mine.keys, new.keys, width), _below(mine.values, new.values, width))
        self._mask = torch.cat([pad(each, (width - each.shape[1], 0)) for each in (self._mask, mask)])

    def _detach(self) -> None:
        """Take the rows' adapters off the model; rows are about to change."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def close(self) -> None:
        """Let everything go; the model is as it was."""
        self._detach()
        self.rows, self._cache = [], RoomyCache(ROOM)
        self._mask = self._mask.new_empty(0, 0)


def _below(mine: Tensor, new: Tensor, width: int) -> Tensor:
    """Put (b, heads, T, d) below (a, heads, t, d), both filled up in front to `width` tokens."""
    return torch.cat([pad(each, (0, 0, width - each.shape[2], 0)) for each in (mine, new)])
