"""Causal attention of one row, or of its last tokens, on a CPU in blocks of queries.

The CPU kernels of PyTorch's fused attention run below the speed of its matrix products: in bfloat16 by far, in float32
going backward over longer rows. Here each block of queries meets only the keys it may see, in plain products that stay
in the cache, and in bfloat16 the weights are kept for the way back. `benchmarks/attention.py` compares the two.

Equations of causal attention, for n queries over T keys, query i seeing keys j <= T - n + i:
    P = softmax(s Q K^T)        O = P V
    dV = P^T dO     dS = P * (dO V^T - rowsum(P * dO V^T))     dQ = s dS K     dK = s dS^T Q
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries per block."""
KEPT = (torch.bfloat16,)
"""Formats in which attention weights are kept for the way back; in others, twice as large, they are made again."""
LONGEST = 1024
"""Tokens of the longest row attended to in blocks: weights kept for the way back grow with their square."""


def faster_in_blocks(query: Tensor, key: Tensor) -> bool:
    """Return whether queries (1, heads, n, d) over keys (1, key heads, T, d) are better attended to in blocks."""
    if query.device.type != "cpu" or key.shape[2] > LONGEST:
        return False
    return query.dtype == torch.bfloat16 or (
        query.dtype == torch.float32 and query.requires_grad and query.shape[2] >= BLOCK
    )


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
    """Attend causally within one row.

    Args:
        query: (1, heads, n, d), of the row's last n tokens.
        key: (1, key heads, T, d); key heads divide heads.
        value: (1, key heads, T, d)
        scaling: factor on the scores.

    Returns:
        (1, heads, n, d)
    """
    result: Tensor = _BlockAttention.apply(query, key, value, scaling)  # type: ignore[no-untyped-call]
    return result


class _BlockAttention(torch.autograd.Function):
    """H key heads, each shared by G query heads: a block's queries of one key head are the rows of one product."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        k, v = key[0], value[0]  # (H, T, d)
        q = query.view(len(k), -1, *query.shape[2:])  # (H, G, n, d)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        future = _future(q)
        kept = []
        for block in _blocks(q):
            weights = _weights(q, k, block, future, scaling)
            out[:, :, block] = torch.bmm(weights, v[:, : weights.shape[-1]]).view(*q.shape[:2], -1, q.shape[3])
            kept.append(weights if q.dtype in KEPT else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scaling = scaling
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        g = gradients[0].reshape(q.shape)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = (torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (k, v))
        future = _future(q)
        for block, there in zip(_blocks(q), kept, strict=True):
            weights = _weights(q, k, block, future, ctx.scaling) if there is None else there
            seen = slice(weights.shape[-1])
            g_block = _rows(g, block)  # (H, G b, d)
            dv[:, seen] += torch.bmm(weights.transpose(1, 2), g_block)
            d_weights = torch.bmm(g_block, v[:, seen].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
            dq[:, :, block] = torch.bmm(d_scores, k[:, seen]).view(*q.shape[:2], -1, q.shape[3])
            dk[:, seen] += torch.bmm(d_scores.transpose(1, 2), _rows(q, block))
        return dq.view(1, -1, *q.shape[2:]), dk[None], dv[None], None


def _weights(q: Tensor, k: Tensor, block: slice, future: Tensor, scaling: float) -> Tensor:
    """Return the attention weights of a block's queries over the keys they may see, (H, G b, seen)."""
    first = k.shape[1] - q.shape[2]  # the key of the first query's own token
    seen = first + block.stop
    scores = torch.bmm(_rows(q, block), k[:, :seen].transpose(1, 2)).mul_(scaling)
    own = scores.view(*q.shape[:2], -1, seen)[..., first + block.start :]  # (H, G, b, b)
    own.add_(future[: own.shape[-1], : own.shape[-1]])
    return torch.softmax(scores, dim=-1)


def _blocks(q: Tensor) -> Iterator[slice]:
    for start in range(0, q.shape[2], BLOCK):
        yield slice(start, min(start + BLOCK, q.shape[2]))


def _rows(q: Tensor, block: slice) -> Tensor:
    """Return a block of b queries of (H, G, n, d) as (H, G b, d)."""
    return q[:, :, block].reshape(len(q), -1, q.shape[3])


def _future(q: Tensor) -> Tensor:
    """Return what to add to the scores of a block among itself: minus infinity where the key comes later."""
    size = min(BLOCK, q.shape[2])
    return torch.full((size, size), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
