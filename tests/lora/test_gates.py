"""Gates and the composition of pieces, against plain loops and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import random_adapter, tiny_base
from mta.config import QUERY_VALUE
from mta.errors import AdapterError
from mta.lora.adapter import Adapter, Factors, mix_factors
from mta.lora.gates import GateStack, compose, gated, piece_scores, piece_weights, stack_gates

SHAPES = {"one": (3, 4), "two": (5, 4)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed: int, rank: int = 2) -> Adapter:
    return Adapter(
        {
            name: Factors(drawn(rank, d_in, seed=seed + k), drawn(d_out, rank, seed=seed + k + 50))
            for k, (name, (d_out, d_in)) in enumerate(SHAPES.items())
        }
    )


# one piece --------------------------------------------------------------------------------------------------------


def test_a_gate_scales_its_tokens_before_the_piece() -> None:
    x, gate, piece = drawn(6, 4, seed=1), drawn(4, seed=2), adapter(3).modules["one"]
    for token, found in zip(x, gated(x, gate, piece), strict=True):
        opening = 1 / (1 + math.exp(-float(token @ gate)))
        assert torch.allclose(found, piece.B @ (piece.A @ (opening * token)), atol=1e-14)


def test_a_gate_of_zeros_lets_half_through() -> None:
    x, piece = drawn(6, 4, seed=1), adapter(3).modules["one"]
    halves = gated(x, torch.zeros(4, dtype=torch.float64), piece)
    assert torch.allclose(halves, 0.5 * x @ (piece.B @ piece.A).T, atol=1e-14)


# scores and weights -----------------------------------------------------------------------------------------------


def normal(vector: Tensor) -> list[float]:
    """Layer norm, number by number."""
    values = vector.tolist()
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread for value in values]


def slow_scores(x: Tensor, shares: list[float], gates: Tensor) -> list[float]:
    return [
        sum(
            share * sum(a * b for a, b in zip(normal(token), normal(gate), strict=True)) / math.sqrt(x.shape[1])
            for share, token in zip(shares, x, strict=True)
        )
        for gate in gates
    ]


def test_scores_are_mean_products_of_normalised_inputs_and_gates() -> None:
    x, gates = drawn(5, 8, seed=1) * 3 + 1, drawn(4, 8, seed=2)
    shares = [0.1, 0.2, 0.3, 0.25, 0.15]
    found = piece_scores(x, torch.tensor(shares, dtype=torch.float64), gates)
    assert found.tolist() == pytest.approx(slow_scores(x, shares, gates), abs=1e-12)


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_the_direction_of_a_gate_counts(size: float, dtype: torch.dtype) -> None:
    """A gate's length grows with the learning rate and the number of updates."""
    x, gates, shares = drawn(5, 8, seed=1).to(dtype), drawn(4, 8, seed=2).to(dtype), torch.full((5,), 0.2, dtype=dtype)
    assert torch.allclose(piece_scores(x, shares, gates * size), piece_scores(x, shares, gates), atol=1e-5)


def test_a_gate_that_learned_nothing_scores_zero() -> None:
    gates = torch.stack([torch.zeros(8), torch.ones(8), drawn(8).float()])
    scores = piece_scores(drawn(5, 8, seed=1).float(), torch.full((5,), 0.2), gates)
    assert scores[:2].tolist() == [0.0, 0.0]
    assert scores[2] != 0


def test_weights_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 0.0, 2.0], dtype=torch.float64)
    total = math.exp(3) + math.exp(2)
    found = piece_weights(scores, top_k=2, temperature=1.0)
    assert found.tolist() == pytest.approx([0, math.exp(3) / total, 0, math.exp(2) / total])
    warm = math.exp(1.5) + math.exp(1)
    assert piece_weights(scores, top_k=2, temperature=2.0)[1] == pytest.approx(math.exp(1.5) / warm)


def test_equal_scores_go_to_the_earlier_sharer_and_fewer_than_k_are_all_mixed() -> None:
    assert piece_weights(torch.zeros(40), top_k=3, temperature=1.0).nonzero().flatten().tolist() == [0, 1, 2]
    assert piece_weights(torch.zeros(2), top_k=3, temperature=1.0).tolist() == [0.5, 0.5]


# composition ------------------------------------------------------------------------------------------------------


def test_modules_are_mixed_each_with_its_own_weights_and_factors_separately() -> None:
    sharers = [adapter(seed) for seed in (10, 20, 30)]
    weights = {
        "one": torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64),
        "two": torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
    }
    made = compose(sharers, weights)
    for name, row in weights.items():
        A = sum(float(w) * sharer.modules[name].A for w, sharer in zip(row, sharers, strict=True))
        B = sum(float(w) * sharer.modules[name].B for w, sharer in zip(row, sharers, strict=True))
        assert torch.allclose(made.modules[name].A, A, atol=1e-14)
        assert torch.allclose(made.modules[name].B, B, atol=1e-14)
    exact = sum(float(w) * sharer.delta("one") for w, sharer in zip(weights["one"], sharers, strict=True))
    assert not torch.allclose(made.delta("one"), exact, atol=1e-2), "as published: not the weighted sum of deltas"


def test_the_mean_of_composed_adapters_is_composed_with_mean_weights() -> None:
    """What lets a user be kept as weights instead of as an adapter."""
    sharers = [adapter(seed) for seed in (10, 20, 30)]
    batches = [{name: torch.softmax(drawn(3, seed=s), 0) for name in SHAPES} for s in (1, 2, 3, 4)]
    mean = mix_factors([compose(sharers, batch) for batch in batches], [0.25] * 4)
    made = compose(sharers, {name: sum(batch[name] for batch in batches) / 4 for name in SHAPES})
    for (_, one), (_, two) in zip(mean.tensors(), made.tensors(), strict=True):
        assert torch.allclose(one, two, atol=1e-14)


# slots ------------------------------------------------------------------------------------------------------------


def stack(slots: int = 3) -> GateStack:
    return GateStack(SHAPES, slots=slots, like=torch.empty(0, dtype=torch.float64), compute_dtype=torch.float64)


def test_a_pack_of_many_is_each_row_alone_and_only_gates_get_gradients() -> None:
    made, beneath = stack(), adapter(90, rank=3)
    sharers = [adapter(seed) for seed in (10, 20, 30)]
    for slot, sharer in enumerate(sharers):
        made.fill(slot, sharer, beneath if slot != 1 else None)
    made.parameters.copy_(drawn(3, 8, seed=5))
    weight, bias, x = drawn(3, 4, seed=6), drawn(3, seed=7), drawn(1, 9, 4, seed=8)
    made.route([0, 2, 1], [4, 3, 2])
    y = made.linear("one", x, weight, bias)
    start = 0
    for slot, length in ((0, 4), (2, 3), (1, 2)):
        tokens = x[0, start : start + length]
        gate = made.export(slot)["one.gate"]
        opening = torch.sigmoid(tokens @ gate)[:, None]
        wanted = tokens @ weight.T + bias + (opening * tokens) @ sharers[slot].delta("one").T
        if slot != 1:
            wanted = wanted + tokens @ beneath.delta("one").T
        assert torch.allclose(y[0, start : start + length], wanted, atol=1e-12)
        start += length
    made.route([2], [9])
    made.linear("two", x, drawn(5, 4, seed=9), None).sum().backward()
    assert made.gradients[2].any()
    assert not made.gradients[:2].any()


def test_a_cleared_slot_holds_nothing() -> None:
    made = stack(2)
    made.fill(0, adapter(1), adapter(2))
    made.fill(1, adapter(3), None)
    made.parameters.fill_(1.0)
    made.clear(0)
    assert not made.parameters[0].any()
    assert made.parameters[1].all()
    made.fill(0, adapter(4), None)
    x = drawn(1, 2, 4)
    made.route([0], [2])
    wanted = 0.5 * x[0] @ adapter(4).delta("one").T
    found = made.linear("one", x, torch.zeros(3, 4, dtype=torch.float64), None)[0]
    assert torch.allclose(found, wanted, atol=1e-12)


def test_gates_are_exported_by_module_and_stacked_by_sharer() -> None:
    made = stack(2)
    made.parameters.copy_(drawn(2, 8))
    exported = [made.export(slot) for slot in range(2)]
    assert list(exported[0]) == ["one.gate", "two.gate"]
    found = stack_gates(exported)
    assert torch.equal(found["two"], made.parameters[:, 4:])
    best = drawn(8, seed=3)
    assert torch.equal(made.export(0, best)["one.gate"], best[:4])


def test_adapters_of_another_base_are_refused() -> None:
    other = random_adapter(tiny_base(), QUERY_VALUE, seed=1)
    with pytest.raises(AdapterError, match="maps 32 to 32 values, the gated layer none; use the base model"):
        stack().fill(0, other, None)
    wide = Adapter({"one": Factors(torch.zeros(2, 7), torch.zeros(3, 2))})
    with pytest.raises(AdapterError, match="module one: the adapter maps 7 to 3 values, the gated layer 4 to 3"):
        stack().fill(0, adapter(1), wide)
