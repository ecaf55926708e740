"""A linear layer with several adapters at once against plain autograd over dense formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mta.lora.routed_linear import Layer, Route, Stretch, routed_linears, stretches

D_IN, D_OUT, RANK = 5, 7, 3


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_neighbours_become_one_stretch():
    assert stretches([4, 4, 2, 4], [3, 1, 5, 2]) == (Stretch(4, 0, 4), Stretch(2, 4, 9), Stretch(4, 9, 11))
    assert stretches([], []) == ()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=20))
def test_stretches_give_every_token_its_slot(rows: list[tuple[int, int]]):
    expected = [slot for slot, length in rows for _ in range(length)]
    found = stretches([slot for slot, _ in rows], [length for _, length in rows])
    assert [part.slot for part in found for _ in range(part.start, part.stop)] == expected
    assert all(one.slot != two.slot for one, two in pairwise(found))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_wants_gradient", [True, False])
@pytest.mark.parametrize("frozen_rank", [0, 2])
def test_output_and_gradients_equal_plain_autograd(bias: bool, x_wants_gradient: bool, frozen_rank: int):
    """Two adapters, the first of two stretches, tokens without any, and gradients that add to what is there."""
    x = draw(2, 6, D_IN, seed=0).requires_grad_(x_wants_gradient)
    weight, b = draw(D_OUT, D_IN, seed=1), draw(D_OUT, seed=2) if bias else None
    As = [draw(RANK, D_IN, seed=10 + k).requires_grad_() for k in range(2)]
    Bs = [draw(D_OUT, RANK, seed=20 + k).requires_grad_() for k in range(2)]
    frozen = [(draw(frozen_rank, D_IN, seed=30 + k), draw(D_OUT, frozen_rank, seed=40 + k)) for k in range(2)]
    scaling, upstream, places = 2.5, draw(2, 6, D_OUT, seed=3), [(0, 0, 4), (1, 4, 9), (0, 9, 11)]

    tokens = x.reshape(12, D_IN)
    delta = torch.zeros(12, D_OUT, dtype=torch.float64)
    for k, start, stop in places:
        own = tokens[start:stop] @ As[k].T @ Bs[k].T * scaling
        beneath = tokens[start:stop] @ frozen[k][0].T @ frozen[k][1].T
        delta = delta + torch.nn.functional.pad(own + beneath, (0, 0, start, 12 - stop))
    expected = torch.nn.functional.linear(x, weight, b) + delta.view(2, 6, D_OUT)
    wanted = [x, *As, *Bs] if x_wants_gradient else [*As, *Bs]
    gradients = torch.autograd.grad(expected, wanted, upstream)

    collected = [(torch.ones(RANK, D_IN).double(), torch.ones(D_OUT, RANK).double()) for _ in range(2)]
    routes = [
        Route(
            start,
            stop,
            torch.cat([frozen[k][0], As[k].detach()]),
            torch.cat([frozen[k][1], Bs[k].detach() * scaling], dim=1),
            *collected[k],
            scaling=scaling,
        )
        for k, start, stop in places
    ]
    x2 = x.detach().clone().requires_grad_(x_wants_gradient)
    (y,) = routed_linears(x2, [Layer(weight, b, routes)])
    y.backward(upstream)

    assert torch.allclose(y, expected, atol=1e-12)
    found = [collected[0][0] - 1, collected[1][0] - 1, collected[0][1] - 1, collected[1][1] - 1]
    if x_wants_gradient:
        assert x2.grad is not None
        found = [x2.grad, *found]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, gradients, strict=True))


def test_fixed_factors_collect_nothing_and_pass_the_gradient_on():
    x = draw(1, 4, D_IN, seed=0).requires_grad_()
    weight, A, B = draw(D_OUT, D_IN, seed=1), draw(RANK, D_IN, seed=2), draw(D_OUT, RANK, seed=3)
    (y,) = routed_linears(x, [Layer(weight, None, [Route(0, 4, A, B)])])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, (weight + B @ A).sum(dim=0).expand(1, 4, D_IN), atol=1e-12)


@pytest.mark.parametrize("used", [(True, True, True), (True, False, True)], ids=["all used", "one left out"])
def test_layers_together_give_what_each_gives_alone(used: tuple[bool, ...]):
    """Unequal widths and ranks, one with a fixed A, one with nothing to collect; gradients of the input add up."""
    x, places = draw(1, 9, D_IN, seed=0), [(0, 4), (4, 9)]
    widths, ranks = (7, 2, 4), (3, 1, 2)

    def make() -> tuple[list[Layer], list[torch.Tensor]]:
        layers, collected = [], []
        for number, (d_out, rank) in enumerate(zip(widths, ranks, strict=True)):
            routes = []
            for place, (start, stop) in enumerate(places):
                A, B = draw(rank, D_IN, seed=10 * number + place), draw(d_out, rank, seed=50 + 10 * number + place)
                gradient_A = torch.zeros(rank, D_IN).double() if number == 0 else None
                gradient_B = torch.zeros(d_out, rank).double() if number != 2 else None
                collected += [one for one in (gradient_A, gradient_B) if one is not None]
                routes.append(Route(start, stop, A, B, gradient_A, gradient_B, 1.5))
            layers.append(Layer(draw(d_out, D_IN, seed=90 + number), None, routes))
        return layers, collected

    def losses(ys):
        return sum(((y**2).sum() for y, wanted in zip(ys, used, strict=True) if wanted), torch.zeros(()).double())

    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    alone, apart = make()
    ys = [routed_linears(one, [layer])[0] for layer in alone]
    losses(ys).backward()
    layers, together = make()
    zs = routed_linears(two, layers)
    losses(zs).backward()
    assert all(torch.allclose(y, z, atol=1e-12) for y, z in zip(ys, zs, strict=True))
    assert torch.allclose(one.grad, two.grad, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(apart, together, strict=True))
    assert sum(float(part.abs().sum()) > 0 for part in together) >= 4
