"""Token rows for benchmarks whose cost depends on lengths, not on what is said."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mta.packing import TokenRow

ANSWER = (5, 6, 7, 2)


def drawn_row(
    generator: torch.Generator, *, words: int, lengths: tuple[int, int], answer: Sequence[int] = ANSWER
) -> TokenRow:
    """Draw a row whose prompt is of any length within `lengths`, of tokens of the vocabulary's second half."""
    shortest, longest = lengths
    length = int(torch.randint(shortest, longest + 1, (), generator=generator))
    return TokenRow(tuple(torch.randint(words // 2, words, (length,), generator=generator).tolist()), tuple(answer))
