"""A frozen linear layer with many adapters, each for its own stretch of tokens, in one operation.

The layer's product is computed once for all tokens; each stretch then adds its own low-rank part in place. On the way
back, gradients of an adapter's factors are added straight to where that adapter collects them: nothing of the size of
all adapters is made, and one adapter's gradient never meets another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring tokens that one adapter answers for."""

    slot: int
    start: int
    stop: int
    """First token after the stretch."""


def stretches(slots: Sequence[int], lengths: Sequence[int]) -> tuple[Stretch, ...]:
    """Join rows to stretches: row i belongs to `slots[i]` and has `lengths[i]` tokens; equal neighbours become one."""
    found: list[Stretch] = []
    stop = 0
    for slot, length in zip(slots, lengths, strict=True):
        start, stop = stop, stop + length
        if found and found[-1].slot == slot:
            start = found.pop().start
        found.append(Stretch(slot, start, stop))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Route:
    """One adapter of one layer and the tokens it answers for."""

    start: int
    stop: int
    A: Tensor
    """(R, d_in)"""
    B: Tensor
    """(d_out, R), scaling folded in"""
    gradient_A: Tensor | None = None
    """(r, d_in): collects the gradient of the last r rows of A; None where A is fixed."""
    gradient_B: Tensor | None = None
    """(d_out, r): collects the gradient of the last r columns of B before scaling; None where B is fixed."""
    scaling: float = 1.0
    """What was folded into the last r columns of B."""


def routed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Sequence[Route]) -> Tensor:
    """Return `x W^T + bias`, plus `(x A^T) B^T` of each route for its tokens.

    Source: LoRA (Hu et al. 2022), section 4.1   h = W_0 x + B A x

    Args:
        x: (..., d_in); its leading dimensions together are N tokens.
        weight: (d_out, d_in), frozen.
        bias: (d_out,), frozen, or None.
        routes: stretches of the N tokens, none overlapping.

    Returns:
        (..., d_out); a backward pass adds to the routes' gradients.
    """
    wants_gradients = torch.empty(0, device=x.device, requires_grad=True)
    result: Tensor = _RoutedLinear.apply(x, weight, bias, wants_gradients, routes)  # type: ignore[no-untyped-call]
    return result


class _RoutedLinear(torch.autograd.Function):
    """`wants_gradients` is empty: it makes backward run for the first layers too, whose input needs no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, wants_gradients: Tensor, routes: Sequence[Route]
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, d_in)
        y = torch.nn.functional.linear(flat, weight, bias)
        products = []
        for route in routes:
            u = flat[route.start : route.stop] @ route.A.T  # (n, R)
            y[route.start : route.stop].addmm_(u, route.B.T)
            products.append(u)
        ctx.save_for_backward(flat, weight, *products)
        ctx.routes, ctx.shape = routes, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, *products = ctx.saved_tensors
        g = gradients[0].reshape(-1, weight.shape[0])  # (N, d_out)
        gx = g @ weight if ctx.needs_input_grad[0] else None  # (N, d_in)
        for route, u in zip(ctx.routes, products, strict=True):
            gu = g[route.start : route.stop] @ route.B  # (n, R)
            if gx is not None:
                gx[route.start : route.stop].addmm_(gu, route.A)
            _collect(route, flat[route.start : route.stop], u, gu, g[route.start : route.stop])
        return (None if gx is None else gx.view(ctx.shape)), None, None, None, None


def _collect(route: Route, x: Tensor, u: Tensor, gu: Tensor, g: Tensor) -> None:
    """Add one stretch's gradients to what its adapter has collected."""
    if route.gradient_A is not None:
        route.gradient_A.add_(gu[:, -route.gradient_A.shape[0] :].T @ x)
    if route.gradient_B is not None:
        # (u^T g)^T reads both operands row by row, which is several times faster than g^T u
        route.gradient_B.add_((u[:, -route.gradient_B.shape[1] :].T @ g).T, alpha=route.scaling)
