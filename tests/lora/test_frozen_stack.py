"""The stack of finished adapters against dense weights: weighted sums, shared terms, short and long rows, packs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum, Factors, as_sum, cat, scale
from mta.lora.frozen_stack import WORTH_COPYING, FrozenStack, inference_stack

SHAPES = {"first": (6, 5), "second": (7, 5)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed: int, *, rank: int = 3, names: tuple[str, ...] = tuple(SHAPES)) -> Adapter:
    return Adapter(
        {
            name: Factors(draw(rank, SHAPES[name][1], seed=seed), draw(SHAPES[name][0], rank, seed=seed + 100))
            for name in names
        }
    )


ANCHORS = [adapter(seed, rank=2 + seed) for seed in range(3)]
USERS = [
    AdapterSum(((0.7, ANCHORS[0]), (0.3, ANCHORS[1]), (1.0, adapter(10, rank=1)))),
    None,
    AdapterSum(((0.4, ANCHORS[1]), (0.6, ANCHORS[2]))),
    as_sum(adapter(11, rank=4, names=("second",))),
    AdapterSum(((0.5, ANCHORS[0]), (0.25, ANCHORS[0]))),
]


def stack() -> FrozenStack:
    return FrozenStack(USERS, SHAPES, device="cpu", dtype=torch.float64)


def dense(user: AdapterSum | None, name: str, x: Tensor, weight: Tensor) -> Tensor:
    delta = sum((w * a.delta(name) for w, a in (user.terms if user else ()) if name in a.modules), torch.zeros(()))
    return x @ (weight + delta).T


@pytest.mark.parametrize("tokens", [1, 3, 200])
@pytest.mark.parametrize("name", SHAPES)
def test_every_row_gets_its_users_dense_delta(name, tokens):
    """Short rows go through all ranks at once, long ones through copies; both equal the dense sum."""
    made = stack()
    short = tokens * sum(a.rank for a in ANCHORS) < WORTH_COPYING
    assert short == (tokens < 200)
    rows = [4, 0, 1, 2, 3, 0]
    x, weight = draw(len(rows), tokens, 5, seed=1), draw(SHAPES[name][0], 5, seed=2)
    bias = draw(SHAPES[name][0], seed=3)
    made.route(torch.tensor(rows))
    result = made.linear(name, x, weight, bias)
    wanted = torch.stack([dense(USERS[row], name, part, weight) + bias for row, part in zip(rows, x, strict=True)])
    assert torch.allclose(result, wanted, rtol=0, atol=1e-12)


def test_a_pack_gets_the_same():
    made, weight = stack(), draw(7, 5, seed=2)
    rows, lengths = [2, 2, 0, 1, 3], [4, 1, 3, 2, 5]
    x = draw(1, sum(lengths), 5, seed=1)
    made.route_pack(rows, lengths)
    wanted = [dense(USERS[row], "second", part, weight) for row, part in zip(rows, x[0].split(lengths), strict=True)]
    assert torch.allclose(made.linear("second", x, weight, None)[0], torch.cat(wanted), rtol=0, atol=1e-12)


def test_shared_terms_are_held_once():
    made = stack()
    shared = sum(a.rank for a in ANCHORS)
    first, second = (made._together((name,)) for name in SHAPES)
    assert first.A.shape == (shared + 1, 5)
    assert second.A.shape == (shared + 1 + 4, 5)
    assert first.own.shape == (5, 3 + 4)  # the fullest user's ranks


def test_a_sum_made_whole_is_the_exact_weighted_sum():
    first, second = ANCHORS[:2]
    whole = AdapterSum(((0.7, first), (1.0, second))).whole()
    assert whole.fingerprint() == cat([scale(first, 0.7), second]).fingerprint()
    assert AdapterSum(((0.7, first), (1.0, second))).rank == whole.rank == 5
    with pytest.raises(AdapterError, match="zero adapters"):
        AdapterSum(()).whole()


def test_adapters_sums_and_the_bare_base_share_a_batch():
    made = inference_stack([USERS[0], None, ANCHORS[2]], SHAPES, device="cpu", dtype=torch.float64)
    x, weight = draw(3, 1, 5, seed=1), draw(6, 5, seed=2)
    made.route(torch.tensor([0, 1, 2]))
    wanted = [
        dense(user, "first", part, weight) for user, part in zip([USERS[0], None, as_sum(ANCHORS[2])], x, strict=True)
    ]
    assert torch.allclose(made.linear("first", x, weight, None), torch.stack(wanted), rtol=0, atol=1e-12)


def test_strangers_are_refused():
    wide = Adapter({"first": Factors(torch.zeros(2, 9), torch.zeros(6, 2))})
    with pytest.raises(AdapterError, match="module first: the adapter maps 9 to 6 values, the base's layer 5 to 6"):
        FrozenStack([as_sum(wide)], SHAPES, device="cpu", dtype=torch.float64)
    elsewhere = Adapter({"third": Factors(torch.zeros(2, 5), torch.zeros(6, 2))})
    with pytest.raises(AdapterError, match="module third that this base model does not have"):
        FrozenStack([as_sum(elsewhere)], SHAPES, device="cpu", dtype=torch.float64)
    made = stack()
    made.route(torch.tensor([0, 1]))
    with pytest.raises(AdapterError, match="2 rows are routed"):
        made.linear("first", draw(3, 1, 5, seed=1), draw(6, 5, seed=2), None)
