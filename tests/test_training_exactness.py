"""The contract of the engine: a user gets the same adapter in any company, and it is PEFT's adapter."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from helpers import random_adapter, random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.forward import answer_nll
from mta.lora.adapter import Adapter, as_sum, cat, recipe
from mta.lora.attach import attached
from mta.lora.frozen_stack import FrozenStack
from mta.merging import merge_cat
from mta.packing import left_pad, pack_rows
from mta.training import Trained, train
from mta.training_plan import TrainJob
from slow_peft import peft_deltas, peft_loss

BASE_CONFIG = TrainConfig(rank=4, alpha=8.0, lr=2e-3, epochs=2, warmup_ratio=0.1)
ALONE = EngineConfig(slots=1, tokens_per_batch=4096)
TOGETHER = EngineConfig(slots=3, tokens_per_batch=150)


def largest_difference(one: Adapter, two: Adapter) -> float:
    assert list(one.modules) == list(two.modules)
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def seven_jobs(base, *, frozen: bool, targets=ALL_LINEAR) -> list[TrainJob]:
    """Unequal histories, batch sizes, epochs, learning rates, clipping, weight decay, and two that stop early."""
    settings = [
        {"batch_size": 2},
        {"batch_size": 3, "epochs": 1, "lr": 4e-3, "dropout": 0.4},
        {"batch_size": 8, "epochs": 4, "weight_decay": 0.1},
        {"batch_size": 1, "epochs": 3, "clip_norm": 0.05},
        {"batch_size": 2, "epochs": 15, "patience": 1, "lr": 4e-3, "held_out_share": 0.3, "dropout": 0.2},
        {"batch_size": 4, "schedule": "linear", "drop_last": True},
        {"batch_size": 2, "epochs": 5, "patience": 2, "max_updates": 7, "schedule": "constant", "held_out_share": 0.3},
    ]
    jobs = []
    for index, changes in enumerate(settings):
        beneath = None
        if frozen:
            anchors = [random_adapter(base, targets, seed=100 + index + k, rank=4 + k) for k in range(2)]
            beneath = recipe(merge_cat(anchors, [0.6, 0.4]))
        config = dataclasses.replace(BASE_CONFIG, target_modules=targets, **changes)
        held_out = random_rows(50 + index, 3) if config.held_out_share else ()
        rows = random_rows(index, 3 + 2 * index, beginning=12 * (index % 2))  # some share a beginning
        jobs.append(TrainJob(f"user/{index}", rows, config, held_out=held_out, frozen=beneath))
    return jobs


def results(base, jobs, engine) -> dict[str, Trained]:
    return {done.job_id: done for done in train(base, jobs, engine=engine)}


@pytest.mark.parametrize("frozen", [False, True], ids=["on-base", "on-two-anchors"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_users_trained_together_equal_each_alone(dtype, tolerance, frozen):
    base = tiny_base(dtype)
    jobs = seven_jobs(base, frozen=frozen)
    together = results(base, jobs, TOGETHER)
    assert len(together) == 7
    stopped_early = 0
    for job in jobs:
        alone = results(base, [job], ALONE)[job.job_id]
        mixed = together[job.job_id]
        assert mixed.updates == alone.updates
        assert mixed.tokens == alone.tokens
        stopped_early += mixed.updates < job.total
        assert largest_difference(mixed.adapter, alone.adapter) < tolerance
        assert mixed.losses == pytest.approx(alone.losses, abs=tolerance * 10)
        assert mixed.adapter.norm() > 0 or job.held_out  # with held-out rows the start may be the best
    assert stopped_early >= 1, "the set-up should contain an early stop"


def test_order_of_jobs_and_number_of_slots_do_not_matter():
    base = tiny_base()
    jobs = seven_jobs(base, frozen=False)
    one = results(base, jobs, TOGETHER)
    two = results(base, jobs[::-1], EngineConfig(slots=7, tokens_per_batch=77))
    for name in one:
        assert largest_difference(one[name].adapter, two[name].adapter) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("train_a", [True, False], ids=["A-and-B", "B-only"])
def test_trained_adapter_equals_plain_peft_and_torch_adamw(train_a, dropout):
    base = tiny_base()
    config = dataclasses.replace(
        BASE_CONFIG,
        batch_size=3,
        epochs=3,
        weight_decay=0.05,
        clip_norm=0.1,
        lr=1e-2,
        train_a=train_a,
        dropout=dropout,
    )
    job = TrainJob("ada", random_rows(7, 8), config)
    ours = results(base, [job], ALONE)["ada"]
    expected = peft_deltas(base, job)
    assert set(expected) == set(ours.adapter.modules)
    for name, delta in expected.items():
        assert float((ours.adapter.delta(name) - delta).abs().max()) < 1e-12


def test_answer_nll_equals_row_by_row_log_softmax():
    base = tiny_base()
    rows = random_rows(3, 6)
    with torch.no_grad():
        together = answer_nll(base, pack_rows(rows, device="cpu"))
        alone = torch.stack([peft_loss(base.model, [row]) * len(row.answer) for row in rows])
    assert torch.allclose(together, alone, atol=1e-12)


def test_base_and_merged_tensors_are_bit_identical_after_adaptation():
    base = tiny_base(torch.float32)
    jobs = seven_jobs(base, frozen=True)
    before_model = {name: p.clone() for name, p in base.model.state_dict().items()}
    before_frozen = [job.frozen.make().fingerprint() for job in jobs]
    results(base, jobs, TOGETHER)
    after = base.model.state_dict()
    assert all(torch.equal(before_model[name], after[name]) for name in before_model)
    assert before_frozen == [job.frozen.make().fingerprint() for job in jobs]
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


def test_stacked_forward_equals_dense_weights():
    """Eq. 7: W_0 x + sum_k w_k B_k A_k x + B_u A_u x equals one dense matrix."""
    base = tiny_base()
    anchors = [random_adapter(base, ALL_LINEAR, seed=s, rank=8) for s in range(2)]
    merged = merge_cat(anchors, [0.7, 0.3])
    own = random_adapter(base, ALL_LINEAR, seed=9, rank=4)
    ids = left_pad([list(range(5, 25))], pad_id=0, device="cpu").input_ids
    stack = FrozenStack([as_sum(cat([merged, own]))], base.shapes(ALL_LINEAR), device="cpu", dtype=torch.float64)
    stack.route(torch.tensor([0]))
    with torch.no_grad(), attached(base.model, stack):
        stacked = base.model(input_ids=ids).logits
    dense = copy.deepcopy(base.model)
    for name in base.shapes(ALL_LINEAR):
        weight = dense.get_submodule(name).weight
        weight.data += 0.7 * anchors[0].delta(name) + 0.3 * anchors[1].delta(name) + own.delta(name)
    with torch.no_grad():
        assert torch.allclose(stacked, dense(input_ids=ids).logits, atol=1e-10)


def test_attach_then_detach_restores_outputs_bit_for_bit():
    base = tiny_base(torch.float32)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        one = as_sum(random_adapter(base, ALL_LINEAR, seed=1))
        stack = FrozenStack([one], base.shapes(ALL_LINEAR), device="cpu", dtype=torch.float32)
        stack.route(torch.tensor([0]))
        with attached(base.model, stack):
            during = base.model(input_ids=ids).logits
        after = base.model(input_ids=ids).logits
    assert not torch.equal(before, during)
    assert torch.equal(before, after)
