"""Frozen linear layers with many adapters on a GPU: the products of all stretches in one launch.

The same function as `routed_linears`, laid out for CUDA's grouped matrix product: the adapters of G stretches lie in
one tensor each, tokens are cut at their ends on the device, and nothing waits for the host. That product wants rows of
whole 16 bytes, so ranks are filled up with zeros. On a CPU it is a loop; use `routed_linears` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

RANKS = 8
"""Ranks are filled up to a multiple of this: 16 bytes of two-byte numbers."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Where the adapters of a layer collect their gradients: the last r ranks before the filling, of S slots."""

    slots: Tensor
    """(G,) int64: the slot of each stretch"""
    A: Tensor | None
    """(S, r, d_in), None where A is fixed"""
    B: Tensor
    """(S, d_out, r), before scaling"""
    first: int
    """Rank that the r ones start at."""
    scaling: float
    """What was folded into B."""


@dataclass(frozen=True, slots=True)
class GroupedLayer:
    """A frozen linear layer and the adapters of G stretches on it."""

    weight: Tensor
    """(d_out, d_in)"""
    bias: Tensor | None
    """(d_out,)"""
    A: Tensor
    """(G, R, d_in), R a multiple of `RANKS`"""
    B: Tensor
    """(G, d_out, R), scaling folded in"""
    collect: Collect


def can_group(device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> bool:
    """Tell whether the device multiplies groups of that format and of layers of these widths in one launch."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if not hasattr(torch.nn.functional, "grouped_mm"):  # older releases of torch
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9 and all(width % RANKS == 0 for width in widths)


def fill_ranks(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Add ranks of zeros to (G, R, d_in) and (G, d_out, R) up to a multiple of `RANKS`."""
    missing = -A.shape[1] % RANKS
    return pad(A, (0, 0, 0, missing)), pad(B, (0, missing))


def grouped_linears(x: Tensor, layers: Sequence[GroupedLayer], ends: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of layers that read the same input; see `routed_linears`.

    Source: LoRA (Hu et al. 2022), section 4.1   h = W_0 x + B A x

    Args:
        x: (..., d_in); its leading dimensions together are N tokens.
        layers: one or more, with adapters for the same stretches.
        ends: (G,) int32: the first token after each stretch; together they cover all N.

    Returns:
        (..., d_out) of each layer; a backward pass adds to what the layers collect.
    """
    wants_gradients = torch.empty(0, device=x.device, requires_grad=True)
    result: tuple[Tensor, ...] = _GroupedLinears.apply(x, wants_gradients, layers, ends)  # type: ignore[no-untyped-call]
    return result


class _GroupedLinears(torch.autograd.Function):
    """`wants_gradients` is empty: it makes backward run for the first layers too, whose input needs no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wants_gradients: Tensor, layers: Sequence[GroupedLayer], ends: Tensor
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (N, d_in)
        A = torch.cat([layer.A for layer in layers], dim=1)  # (G, all R, d_in)
        u = _product(flat, A.transpose(1, 2), ends)  # (N, all R)
        ys = []
        for layer, own in zip(layers, _split(u, layers), strict=True):
            y = torch.nn.functional.linear(flat, layer.weight, layer.bias)
            ys.append(y.add_(_product(own, layer.B.transpose(1, 2), ends)))
        ctx.save_for_backward(flat, u, A, ends)
        ctx.set_materialize_grads(False)
        ctx.layers, ctx.shape = layers, x.shape
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        flat, u, A, ends = ctx.saved_tensors
        layers = ctx.layers
        gs = [
            flat.new_zeros(len(flat), len(layer.weight)) if g is None else g.reshape(-1, len(layer.weight)).contiguous()
            for g, layer in zip(gradients, layers, strict=True)
        ]
        gu = torch.cat([_product(g, layer.B, ends) for g, layer in zip(gs, layers, strict=True)], dim=1)  # (N, all R)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = _product(gu, A, ends)  # (N, d_in)
            for g, layer in zip(gs, layers, strict=True):
                gx.addmm_(g, layer.weight)
        if any(layer.collect.A is not None for layer in layers):
            gA = _product(gu.T, flat, ends)  # (G, all R, d_in)
            for layer, own in zip(layers, torch.split(gA, _ranks(layers), dim=1), strict=True):
                _add(layer.collect.A, layer.collect, own)
        for layer, g, own in zip(layers, gs, _split(u, layers), strict=True):
            gB = _product(own.T, g, ends)  # (G, R, d_out)
            _add(layer.collect.B.transpose(1, 2), layer.collect, gB, alpha=layer.collect.scaling)
        return (None if gx is None else gx.view(ctx.shape)), None, None, None


def _product(one: Tensor, two: Tensor, ends: Tensor) -> Tensor:
    """Multiply each stretch's rows with its own matrix, or, of two matrices, each stretch's part of both."""
    return torch.nn.functional.grouped_mm(one, two, offs=ends)


def _ranks(layers: Sequence[GroupedLayer]) -> list[int]:
    return [layer.A.shape[1] for layer in layers]


def _split(u: Tensor, layers: Sequence[GroupedLayer]) -> Sequence[Tensor]:
    return torch.split(u, _ranks(layers), dim=1)


def _add(into: Tensor | None, collect: Collect, found: Tensor, *, alpha: float = 1.0) -> None:
    """Add the gradients of G stretches, ranks in the middle, to those that their slots have collected."""
    if into is not None:
        own = found[:, collect.first : collect.first + into.shape[1]]
        into.index_add_(0, collect.slots, own.to(into.dtype), alpha=alpha)
