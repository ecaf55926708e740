"""Attention for rows that stand one after the other in one sequence: each token sees its own row only.

The rows are told apart by the lengths of the sequence's segments, so no mask is built and none of the work above the
diagonal is done. A segment may go on from another one, the beginning that several rows share: its tokens see that one
too. On a CPU row follows row; on a GPU all go together, see `row_grid`. The model's weights and its other layers are
untouched: attention is exchanged for the length of a block, through the interface that transformers offers for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mta.block_attention import attend_in_blocks, faster_in_blocks
from mta.errors import ModelError
from mta.row_grid import RowGrids, attend_in_grids, row_grids

NAME = "mta_rows"
NOT_COVERED = ("softcap", "s_aux", "position_bias")
"""Changes some architectures make to the attention scores, which this attention does not know."""


def attend_within_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: Sequence[int],
    segments_before: Sequence[int | None],
    row_grids: RowGrids | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each row.

    Args:
        module: the attention layer; not used.
        query: (1, heads, N, d)
        key: (1, key heads, N, d); key heads divide heads.
        value: (1, key heads, N, d)
        attention_mask: not used; the segments say everything.
        segment_lengths: tokens of each segment, N together.
        segments_before: for each segment the one that its row begins with; None where it begins itself.
        row_grids: the same segments laid out in grids, to attend in these.
        scaling: factor on the scores; None is 1 / sqrt(d).
        sliding_window: a token sees this many of its row's last tokens, itself included; None is all of them.
        others: what else the model passes on.

    Returns:
        (1, N, heads, d), and None in place of attention weights.

    Raises:
        ModelError: the architecture changes the scores in a way this attention does not know.
    """
    check_covered(others)
    if row_grids is not None:
        return attend_in_grids(query, key, value, row_grids, scaling=scaling, window=sliding_window), None
    queries, keys, values = (torch.split(tensor, list(segment_lengths), dim=2) for tensor in (query, key, value))
    attended = [
        attend_row(
            queries[index],
            _with_beginning(keys, index, before),
            _with_beginning(values, index, before),
            scaling=scaling,
            window=sliding_window,
        )
        for index, before in enumerate(segments_before)
    ]
    return torch.cat([segment.transpose(1, 2) for segment in attended], dim=1), None


def check_covered(others: Mapping[str, Any]) -> None:
    """Refuse what a model passes on to its attention and these functions do not know.

    Raises:
        ModelError: the architecture changes the scores.
    """
    if unknown := [name for name in NOT_COVERED if others.get(name) is not None]:
        raise ModelError(f"this base model's attention uses {unknown[0]}, which is not supported; use another base")


def _with_beginning(segments: Sequence[Tensor], index: int, before: int | None) -> Tensor:
    """Return a segment's keys or values, (1, key heads, n, d), after those of the segment that its row begins with."""
    return segments[index] if before is None else torch.cat([segments[before], segments[index]], dim=2)


def attend_row(q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None, window: int | None) -> Tensor:
    """Attend causally from the last tokens of a row, q (1, heads, n, d), to all of it, k and v (1, key heads, T, d)."""
    grouped = q.shape[1] != k.shape[1]
    n, length = q.shape[2], k.shape[2]
    if window is not None and length > window:
        seen = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n).triu(length - n + 1 - window)
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=grouped)
    if faster_in_blocks(q, k):
        return attend_in_blocks(q, k, v, scaling=q.shape[-1] ** -0.5 if scaling is None else scaling)
    if n == length:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    last = causal_lower_right(n, length)
    return scaled_dot_product_attention(q, k, v, attn_mask=last, scale=scaling, enable_gqa=grouped)


AttentionInterface.register(NAME, attend_within_rows)


def rows_apart(model: Any) -> AbstractContextManager[None]:
    """Let the model's attention keep rows apart inside the block; its forward pass needs `segments`."""
    return exchanged_attention(model, NAME)


@contextmanager
def exchanged_attention(model: Any, name: str) -> Iterator[None]:
    """Let the model attend by the function that is registered under a name inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def segments(lengths: Sequence[int], before: Sequence[int | None], *, device: torch.device) -> dict[str, Any]:
    """Return what a forward pass inside `rows_apart` has to be given besides its tokens.

    Args:
        lengths: tokens of each segment.
        before: for each segment the one that its row begins with; None where it begins itself.
        device: where the model is.
    """
    grids = row_grids(lengths, before, device=device) if row_grids_on(device) else None
    return {"segment_lengths": lengths, "segments_before": before, "row_grids": grids}


def row_grids_on(device: torch.device) -> bool:
    """Tell whether rows attend in grids there, rather than one after the other."""
    return device.type != "cpu"


@torch.no_grad()
def check_rows_stay_apart(model: Any) -> None:
    """Make sure that rows in one sequence give what each gives alone.

    Architectures that carry a state along the sequence (recurrent or convolutional layers) or that change the attention
    scores would mix rows or lose something; two short rows tell. Their tokens are from the middle of the vocabulary.
    The first few are often special ones that hardly occurred in training, on which bfloat16 gives little but noise.

    Raises:
        ModelError: they do not.
    """
    words = model.config.get_text_config().vocab_size
    rows = [
        ((words // 3 + 37 * torch.arange(first, last)) % words).to(model.device)[None]
        for first, last in [(0, 5), (1, 9)]
    ]
    alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1)
    lengths = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    try:
        with rows_apart(model):
            packed = model(
                input_ids=torch.cat(rows, dim=1),
                position_ids=positions,
                use_cache=False,
                **segments(lengths, [None] * len(rows), device=model.device),
            ).logits
    except TypeError as error:
        raise _mixes_rows(model) from error
    tolerance = 0.05 if packed.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if not bool((packed - alone).norm() <= tolerance * alone.norm()):
        raise _mixes_rows(model)


def _mixes_rows(model: Any) -> ModelError:
    return ModelError(
        f"base model of type {type(model).__name__}: rows in one sequence do not give what each gives alone, so users "
        "cannot share a batch; use a decoder with plain attention (Llama, Mistral, Qwen 2 and 3, Gemma 3, SmolLM)"
    )
