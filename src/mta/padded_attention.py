"""Attention for a batch of rows padded on the left, on a CPU: each row attends within its own tokens only.

A masked attention goes over padding and over what comes later as well, in kernels that run far below the speed of
matrix products in bfloat16. Here row follows row, each without its padding, as in `row_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mta.row_attention import attend_row, check_covered, exchanged_attention

NAME = "mta_padded"


def attend_within_padding(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: Sequence[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each row.

    Args:
        module: the attention layer; not used.
        query: (B, heads, T, d)
        key: (B, key heads, T, d); key heads divide heads.
        value: (B, key heads, T, d)
        attention_mask: not used; the lengths say everything.
        row_lengths: tokens of each row; those before them are padding, whose output is zero.
        scaling: factor on the scores; None is 1 / sqrt(d).
        sliding_window: a token sees this many of its row's last tokens, itself included; None is all of them.
        others: what else the model passes on.

    Returns:
        (B, T, heads, d), and None in place of attention weights.

    Raises:
        ModelError: the architecture changes the scores in a way this attention does not know.
    """
    check_covered(others)
    batch, heads, columns, width = query.shape
    out = query.new_zeros(batch, columns, heads, width)
    for row, length in enumerate(row_lengths):
        if length:
            q, k, v = (each[row : row + 1, :, columns - length :] for each in (query, key, value))
            attended = attend_row(q, k, v, scaling=scaling, window=sliding_window)
            out[row, columns - length :] = attended[0].transpose(0, 1)
    return out, None


AttentionInterface.register(NAME, attend_within_padding)


def padding_left_out_on(device: torch.device) -> bool:
    """Tell whether rows are attended to without their padding there, rather than with a mask."""
    return device.type == "cpu"


def without_padding(model: Any) -> AbstractContextManager[None]:
    """Let the model's attention leave padding out inside the block; its forward pass needs `row_lengths`."""
    return exchanged_attention(model, NAME)
