"""All stretches in one product give what they give one by one, on a CPU too, where it is only slower."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import random_adapter, random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.lora import stacked
from mta.lora.adapter import Adapter, recipe
from mta.lora.grouped_linear import RANKS, Collect, GroupedLayer, can_group, fill_ranks, grouped_linears
from mta.lora.routed_linear import Layer, Route, routed_linears
from mta.merging import merge_cat
from mta.training import train
from mta.training_plan import TrainJob

D_IN, WIDTHS, RANK, FROZEN = 16, (24, 8), 3, 2
PLACES = [(2, 0, 4), (0, 4, 9), (2, 9, 11)]
"""Slot, first and last token of each stretch; one slot has two."""


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_ways(dtype: torch.dtype, *, fixed_a: bool = False, x_trains: bool = True, used: int = 2) -> list[list]:
    """Outputs, the gradient of the input and what was collected, by stretches and in one product."""
    slots = torch.tensor([slot for slot, _, _ in PLACES])
    ends = torch.tensor([end for _, _, end in PLACES], dtype=torch.int32)
    found = []
    for grouped in (False, True):
        x = draw(1, 11, D_IN, seed=0, dtype=dtype).requires_grad_(x_trains)
        collected, layers = [], []
        for number, d_out in enumerate(WIDTHS):
            weight, bias = draw(d_out, D_IN, seed=1 + number, dtype=dtype), draw(d_out, seed=5 + number, dtype=dtype)
            A, B = draw(3, FROZEN + RANK, D_IN, seed=10 + number), draw(3, d_out, FROZEN + RANK, seed=20 + number)
            into_A = None if fixed_a else torch.ones(3, RANK, D_IN)
            into_B = torch.ones(3, d_out, RANK)
            collected += [part for part in (into_A, into_B) if part is not None]
            if grouped:
                filled = fill_ranks(A[slots].to(dtype), B[slots].to(dtype))
                layers.append(GroupedLayer(weight, bias, *filled, Collect(slots, into_A, into_B, FROZEN, 1.5)))
                continue
            routes = [
                Route(start, stop, A[s].to(dtype), B[s].to(dtype), None if fixed_a else into_A[s], into_B[s], 1.5)
                for s, start, stop in PLACES
            ]
            layers.append(Layer(weight, bias, routes))
        ys = grouped_linears(x, layers, ends) if grouped else routed_linears(x, layers)
        torch.autograd.backward([(y.float() ** 2).sum() for y in ys[:used]])
        found.append([*ys, *([x.grad] if x_trains else []), *collected])
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(
    "setting",
    [{}, {"fixed_a": True}, {"x_trains": False}, {"used": 1}],
    ids=["all", "fixed A", "first layer", "unused"],
)
def test_one_product_gives_what_stretches_give(dtype: torch.dtype, tolerance: float, setting: dict) -> None:
    one, two = both_ways(dtype, **setting)
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.float() - theirs.float()).abs().max() <= tolerance * theirs.float().abs().max()


def test_ranks_are_filled_with_zeros() -> None:
    A, B = fill_ranks(torch.ones(2, 5, 16), torch.ones(2, 24, 5))
    assert A.shape == (2, RANKS, 16)
    assert B.shape == (2, 24, RANKS)
    assert torch.equal(B @ A, torch.full((2, 24, 16), 5.0))
    whole, _ = fill_ranks(torch.ones(2, 8, 16), torch.ones(2, 24, 8))
    assert whole.shape == (2, 8, 16)


def test_a_cpu_goes_by_stretches() -> None:
    assert not can_group(torch.device("cpu"), torch.bfloat16, [16])


def largest_difference(one: Adapter, two: Adapter) -> float:
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def test_training_in_one_product_gives_the_same_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of unequal histories over merged anchors, some finishing early so that slots are given on."""
    base = tiny_base(torch.float32)
    config = TrainConfig(rank=4, alpha=8.0, lr=2e-3, epochs=2, batch_size=2)
    beneath = merge_cat([random_adapter(base, ALL_LINEAR, seed=k) for k in (1, 2)], [0.6, 0.4])
    jobs = [
        TrainJob(f"user {n}", random_rows(n, 2 + n, beginning=10), config, frozen=recipe(beneath)) for n in range(4)
    ]
    engine = EngineConfig(slots=3, tokens_per_batch=120)
    by_stretch = {done.job_id: done for done in train(base, jobs, engine=engine)}
    calls = []
    monkeypatch.setattr(stacked, "can_group", lambda device, dtype, widths: True)
    monkeypatch.setattr(stacked, "grouped_linears", lambda *given: calls.append(1) or grouped_linears(*given))
    list(train(base, jobs[:1], engine=engine))
    assert not calls, "only where it is asked for"
    together = {done.job_id: done for done in train(base, jobs, engine=replace(engine, grouped=True))}
    assert calls
    for name, done in by_stretch.items():
        assert largest_difference(done.adapter, together[name].adapter) < 1e-5
        assert done.losses == pytest.approx(together[name].losses, abs=1e-5)
