"""Token rows, and how rows of many users share a batch: sorted by length, padded on the left.

With left padding the answers of a batch end in the same column, so that the model's head is computed for the last few
positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One prompt and its answer as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Answer tokens with the end-of-answer token; () where there is no answer to learn or score."""
    cut_words: int = 0
    """Words of history or query that were cut to fit."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the left to one length."""

    input_ids: Tensor
    """(batch, T) int64"""
    attention_mask: Tensor
    """(batch, T) int64, 0 on padding"""
    position_ids: Tensor
    """(batch, T) int64, counting from each row's first real token"""

    @property
    def padded_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.input_ids.numel()


def length_buckets(items: Sequence[T], length: Callable[[T], int], *, tokens_per_batch: int) -> list[list[T]]:
    """Group items of similar length so that each padded group stays within a token budget.

    Items are sorted by length (longest first, ties in input order), across users. An item longer than the budget gets
    a group of its own.
    """
    buckets: list[list[T]] = []
    for item in sorted(items, key=length, reverse=True):
        longest = length(buckets[-1][0]) if buckets else 0
        if buckets and longest * (len(buckets[-1]) + 1) <= tokens_per_batch:
            buckets[-1].append(item)
        else:
            buckets.append([item])
    return buckets


def left_pad(sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str) -> Batch:
    """Pad token sequences on the left to the longest one."""
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, sequence in enumerate(sequences):
        input_ids[index, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        attention_mask[index, width - len(sequence) :] = 1
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    return Batch(input_ids.to(device), attention_mask.to(device), position_ids.to(device))
