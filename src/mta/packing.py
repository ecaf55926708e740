"""Token rows, and how rows of many users share a batch.

Two layouts: a `Pack` puts rows one after the other in one sequence, without padding, where the answers are known
(training, likelihoods); a `Batch` pads rows on the left to one length, so that all of them go on from the same column
(generation, labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
    person: int = 0
    """Whose row it is among the people of one job, for a job that several people share."""

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


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows one after the other in one sequence of N tokens.

    A row's last answer token predicts nothing and is left out.
    """

    input_ids: Tensor
    """(1, N) int64"""
    position_ids: Tensor
    """(1, N) int64, starting again at 0 with each row"""
    lengths: tuple[int, ...]
    """Tokens of each row; their sum is N."""
    people: tuple[int, ...]
    """Whose each row is, see `TokenRow.person`."""
    sources: Tensor
    """(M,) int64: the positions in the sequence that predict an answer token"""
    targets: Tensor
    """(M,) int64: the answer tokens"""
    owners: Tensor
    """(M,) int64: the row each answer token belongs to"""


def pack_rows(rows: Sequence[TokenRow], *, device: torch.device | str) -> Pack:
    """Put rows one after the other.

    Args:
        rows: prompt and answer of each must not be empty.
        device: where the tensors go.
    """
    sequences = [(row.prompt + row.answer)[:-1] for row in rows]
    ends = list(accumulate(map(len, sequences)))
    sources = [place for row, end in zip(rows, ends, strict=True) for place in range(end - len(row.answer), end)]
    return Pack(
        input_ids=_integers([token for sequence in sequences for token in sequence], device)[None],
        position_ids=_integers([place for sequence in sequences for place in range(len(sequence))], device)[None],
        lengths=tuple(map(len, sequences)),
        people=tuple(row.person for row in rows),
        sources=_integers(sources, device),
        targets=_integers([token for row in rows for token in row.answer], device),
        owners=_integers([index for index, row in enumerate(rows) for _ in row.answer], device),
    )


def _integers(values: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device)


def fill_packs(items: Sequence[T], length: Callable[[T], int], *, tokens_per_batch: int) -> list[list[T]]:
    """Cut a sequence of items into neighbouring groups within a token budget, keeping their order.

    A user's rows stay together, since callers list them user by user. An item longer than the budget gets a group of
    its own.
    """
    packs: list[list[T]] = []
    filled = 0
    for item in items:
        if not packs or filled + length(item) > tokens_per_batch:
            packs.append([])
            filled = 0
        packs[-1].append(item)
        filled += length(item)
    return packs


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
