"""Token rows, and how rows of many users share a batch.

Two layouts: a `Pack` puts rows one after the other in one sequence, without padding, where the answers are known
(training, likelihoods); a `Batch` pads rows on the left to one length, so that all of them go on from the same column
(generation, labels).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, takewhile
from typing import TypeVar

import torch
from torch import Tensor

from mta.transfer import send, send_integers

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
    lengths: tuple[int, ...]
    """Tokens of each row, without padding."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows one after the other in one sequence of N tokens, which falls into segments.

    A segment is a row, or the beginning that some rows share, or the rest of a row that shares its beginning. A row's
    last answer token predicts nothing and is left out.
    """

    input_ids: Tensor
    """(1, N) int64"""
    position_ids: Tensor
    """(1, N) int64, each token's place in its row"""
    lengths: tuple[int, ...]
    """Tokens of each segment; their sum is N."""
    before: tuple[int | None, ...]
    """For each segment the one that its row begins with; None where it begins itself."""
    rows: tuple[int, ...]
    """The row each segment is of; of a shared beginning, the first that shares it."""
    people: tuple[int, ...]
    """Whose each segment is, see `TokenRow.person`."""
    sources: Tensor
    """(M,) int64: the positions in the sequence that predict an answer token"""
    targets: Tensor
    """(M,) int64: the answer tokens"""
    owners: Tensor
    """(M,) int64: the row each answer token belongs to"""


def pack_rows(
    rows: Sequence[TokenRow], *, device: torch.device | str, adapters: Sequence[Hashable] | None = None
) -> Pack:
    """Put rows one after the other.

    Args:
        rows: prompt and answer of each must not be empty.
        device: where the tensors go.
        adapters: which adapter each row goes through. Neighbouring rows of one adapter and person then go together
            through the tokens that all of them begin with, since what an adapter makes of them is the same; their
            gradients add up there. None: each row goes alone.
    """
    segments = list(_segments(rows, range(len(rows)) if adapters is None else adapters))
    ends = list(accumulate(len(segment.tokens) for segment in segments))
    answers = [rows[segment.row].answer if segment.ends_row else () for segment in segments]
    return Pack(
        input_ids=send_integers([token for segment in segments for token in segment.tokens], device)[None],
        position_ids=send_integers([place for segment in segments for place in segment.places], device)[None],
        lengths=tuple(len(segment.tokens) for segment in segments),
        before=tuple(segment.before for segment in segments),
        rows=tuple(segment.row for segment in segments),
        people=tuple(rows[segment.row].person for segment in segments),
        sources=send_integers(
            [place for answer, end in zip(answers, ends, strict=True) for place in range(end - len(answer), end)],
            device,
        ),
        targets=send_integers([token for row in rows for token in row.answer], device),
        owners=send_integers([index for index, row in enumerate(rows) for _ in row.answer], device),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    tokens: tuple[int, ...]
    row: int
    start: int = 0
    """Place of the first token in its row."""
    before: int | None = None
    ends_row: bool = True

    @property
    def places(self) -> range:
        return range(self.start, self.start + len(self.tokens))


def _segments(rows: Sequence[TokenRow], adapters: Sequence[Hashable]) -> Iterator[_Segment]:
    count = 0
    for _, group in groupby(range(len(rows)), key=lambda index: (adapters[index], rows[index].person)):
        members = list(group)
        shared = shared_beginning([rows[index].prompt for index in members])
        before = count if shared else None
        if shared:
            yield _Segment(rows[members[0]].prompt[:shared], members[0], ends_row=False)
        for index in members:
            tokens = rows[index].prompt + rows[index].answer
            yield _Segment(tokens[shared:-1], index, start=shared, before=before)
        count += len(members) + bool(shared)


WORTH_SHARING = 8
"""Tokens below which rows are not split for a common beginning."""


def shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all prompts begin with, leaving at least one to each; 0 where it is not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # what these two share, all in between share
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    shared = min(equal, *(len(prompt) - 1 for prompt in prompts))
    return shared if shared >= WORTH_SHARING else 0


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


def left_pad(sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str, least: int = 1) -> Batch:
    """Pad token sequences on the left to the longest one, or to a width of at least so many tokens."""
    width = max(least, *map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, sequence in enumerate(sequences):
        input_ids[index, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        attention_mask[index, width - len(sequence) :] = 1
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    lengths = tuple(map(len, sequences))
    return Batch(send(input_ids, device), send(attention_mask, device), send(position_ids, device), lengths)
