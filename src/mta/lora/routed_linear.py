"""Frozen linear layers with many adapters, each for its own stretch of tokens, in one operation.

A layer's product is computed once for all tokens; each stretch then adds its own low-rank part in place. On the way
back, gradients of an adapter's factors are added straight to where that adapter collects them: nothing of the size of
all adapters is made, and one adapter's gradient never meets another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, slots=True)
class Layer:
    """A frozen linear layer and the adapters on it."""

    weight: Tensor
    """(d_out, d_in)"""
    bias: Tensor | None
    """(d_out,)"""
    routes: Sequence[Route]
    """Stretches of the N tokens, none overlapping; layers that go together have equal ones."""


def routed_linears(x: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """Return `x W^T + bias` of each layer, plus `(x A^T) B^T` of each of its routes for its tokens.

    Layers that read the same input share the products with it: all A of a stretch are multiplied at once, and the
    gradient of the input is added up in place.

    Source: LoRA (Hu et al. 2022), section 4.1   h = W_0 x + B A x

    Args:
        x: (..., d_in); its leading dimensions together are N tokens.
        layers: one or more.

    Returns:
        (..., d_out) of each layer; a backward pass adds to the routes' gradients.
    """
    wants_gradients = torch.empty(0, device=x.device, requires_grad=True)
    result: tuple[Tensor, ...] = _RoutedLinears.apply(x, wants_gradients, layers)  # type: ignore[no-untyped-call]
    return result


class _RoutedLinears(torch.autograd.Function):
    """`wants_gradients` is empty: it makes backward run for the first layers too, whose input needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wants_gradients: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (N, d_in)
        ys = [torch.nn.functional.linear(flat, layer.weight, layer.bias) for layer in layers]
        products = []
        for routes in _by_stretch(layers):
            tokens = slice(routes[0].start, routes[0].stop)
            u = flat[tokens] @ _join([route.A for route in routes]).T  # (n, all R)
            for y, route, own in zip(ys, routes, _split(u, routes), strict=True):
                y[tokens].addmm_(own, route.B.T)
            products.append(u)
        ctx.save_for_backward(flat, *products)
        ctx.set_materialize_grads(False)
        ctx.layers, ctx.shape = layers, x.shape
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        flat, *products = ctx.saved_tensors
        layers = ctx.layers
        gs = [_flat_gradient(g, flat, layer) for g, layer in zip(gradients, layers, strict=True)]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = gs[0] @ layers[0].weight  # (N, d_in)
            for g, layer in zip(gs[1:], layers[1:], strict=True):
                gx.addmm_(g, layer.weight)
        for routes, u in zip(_by_stretch(layers), products, strict=True):
            tokens = slice(routes[0].start, routes[0].stop)
            gus = [g[tokens] @ route.B for g, route in zip(gs, routes, strict=True)]  # (n, R) each
            if gx is not None:
                gx[tokens].addmm_(_join(gus, dim=1), _join([route.A for route in routes]))
            _collect_A(routes, flat[tokens], gus)
            for route, own, g in zip(routes, _split(u, routes), gs, strict=True):
                _collect_B(route, own, g[tokens])
        return (None if gx is None else gx.view(ctx.shape)), None, None


def _by_stretch(layers: Sequence[Layer]) -> Iterator[tuple[Route, ...]]:
    """Yield for each stretch its route in every layer."""
    return zip(*(layer.routes for layer in layers), strict=True)


def _join(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _split(u: Tensor, routes: Sequence[Route]) -> Sequence[Tensor]:
    """Cut the products with all A of a stretch, (n, all R), into each layer's, (n, R)."""
    return torch.split(u, [route.A.shape[0] for route in routes], dim=1)


def _flat_gradient(g: Tensor | None, flat: Tensor, layer: Layer) -> Tensor:
    """Return an output's gradient as (N, d_out); that of an output nobody used is zero."""
    d_out = layer.weight.shape[0]
    return flat.new_zeros(len(flat), d_out) if g is None else g.reshape(-1, d_out)


def _collect_A(routes: Sequence[Route], x: Tensor, gus: Sequence[Tensor]) -> None:
    """Add one stretch's gradients of A to what its adapters have collected."""
    wanted = [
        (route.gradient_A, gu[:, -route.gradient_A.shape[0] :])
        for route, gu in zip(routes, gus, strict=True)
        if route.gradient_A is not None
    ]
    if wanted:
        found = _join([gu for _, gu in wanted], dim=1).T @ x
        parts = torch.split(found, [len(into) for into, _ in wanted])
        for (into, _), gradient in zip(wanted, parts, strict=True):
            into.add_(gradient)


def _collect_B(route: Route, u: Tensor, g: Tensor) -> None:
    """Add one stretch's gradient of B to what its adapter has collected."""
    if route.gradient_B is not None:
        # (u^T g)^T reads both operands row by row, which is several times faster than g^T u
        route.gradient_B.add_((u[:, -route.gradient_B.shape[1] :].T @ g).T, alpha=route.scaling)
