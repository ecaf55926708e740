"""Faults of one user must not reach another: moments, weight decay, NaN, slot reuse."""

from __future__ import annotations

import dataclasses

import torch

from helpers import random_adapter, random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.lora.adapter import Adapter, Factors, recipe
from mta.lora.slot_adamw import SlotAdamW, SlotUpdate
from mta.training import train
from mta.training_plan import TrainJob

CONFIG = TrainConfig(rank=4, alpha=8.0, lr=1e-2, epochs=2, batch_size=2, weight_decay=0.1)


def optimizer(slots: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, SlotAdamW]:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(slots, width, generator=generator, dtype=torch.float64)
    gradients = torch.randn(slots, width, generator=generator, dtype=torch.float64)
    return parameters, gradients, SlotAdamW(parameters, gradients)


def test_idle_slots_do_not_move_under_weight_decay_and_momentum():
    parameters, gradients, adam = optimizer(4)
    adam.step([SlotUpdate(slot, 1e-2, CONFIG) for slot in range(4)])  # everybody has momentum now
    before = parameters.clone()
    moments = adam.first_moments.clone(), adam.second_moments.clone(), adam.steps.clone()
    gradients[1] = 1.0
    gradients[3] = 0.0  # a live slot with a zero gradient does move
    adam.step([SlotUpdate(1, 1e-2, CONFIG), SlotUpdate(3, 1e-2, CONFIG)])
    for idle in (0, 2):
        assert torch.equal(parameters[idle], before[idle])
        assert torch.equal(adam.first_moments[idle], moments[0][idle])
        assert torch.equal(adam.second_moments[idle], moments[1][idle])
        assert adam.steps[idle] == moments[2][idle]
    for live in (1, 3):
        assert not torch.equal(parameters[live], before[live])


def test_each_slot_steps_like_torch_adamw_on_its_own_clock():
    parameters, gradients, adam = optimizer(3)
    start = parameters.clone()
    references = []
    for slot in range(3):
        p = torch.nn.Parameter(start[slot].clone())
        references.append((p, torch.optim.AdamW([p], lr=1e-2, weight_decay=0.1)))
    generator = torch.Generator().manual_seed(5)
    for turn in range(6):
        live = [slot for slot in range(3) if turn % (slot + 1) == 0]  # slot 0 always, 1 every 2nd, 2 every 3rd
        gradients.zero_()
        for slot in live:
            drawn = torch.randn(6, generator=generator, dtype=torch.float64)
            gradients[slot] = drawn
            p, reference = references[slot]
            p.grad = drawn.clone()
            torch.nn.utils.clip_grad_norm_([p], CONFIG.clip_norm)
            reference.step()
        adam.step([SlotUpdate(slot, 1e-2, CONFIG) for slot in live])
    for slot, (p, _) in enumerate(references):
        assert torch.allclose(parameters[slot], p.data, atol=1e-14)
    assert adam.steps.tolist() == [6, 3, 2]


def test_nan_gradient_of_one_slot_is_not_applied_and_not_shared():
    parameters, gradients, adam = optimizer(3)
    before = parameters.clone()
    gradients[1, 2] = float("nan")
    norms = adam.step([SlotUpdate(slot, 1e-2, CONFIG) for slot in range(3)])
    assert norms[1] != norms[1]
    assert torch.equal(parameters[1], before[1])
    assert torch.isfinite(parameters).all()
    assert torch.isfinite(adam.first_moments).all()
    assert float(gradients.abs().max()) == 0
    assert not torch.equal(parameters[0], before[0])


def test_retired_slot_leaves_nothing_to_the_next_user():
    """With one slot, the second user passes through the first one's slot and must equal training alone.

    To rounding only: what lies beneath the first user widens the slot, and a wider product may sum in another order.
    """
    base = tiny_base()
    first = TrainJob(
        "first",
        random_rows(1, 5),
        dataclasses.replace(CONFIG, epochs=5),
        frozen=recipe(random_adapter(base, ALL_LINEAR, seed=3)),
    )
    second = TrainJob("second", random_rows(2, 4), CONFIG)
    one_slot = EngineConfig(slots=1)
    after = list(train(base, [first, second], engine=one_slot))[1]
    alone = next(train(base, [second], engine=one_slot))
    assert after.job_id == alone.job_id == "second"
    assert after.adapter.modules.keys() == alone.adapter.modules.keys()
    for name, wanted in alone.adapter.modules.items():
        assert torch.allclose(after.adapter.modules[name].A, wanted.A, rtol=0, atol=1e-14)
        assert torch.allclose(after.adapter.modules[name].B, wanted.B, rtol=0, atol=1e-14)


def test_a_user_with_nan_beneath_does_not_touch_the_others():
    base = tiny_base()
    poison = random_adapter(base, ALL_LINEAR, seed=3)
    name = next(iter(poison.modules))
    broken = poison.modules[name].A.clone()
    broken[0, 0] = float("nan")
    poison = Adapter({**poison.modules, name: Factors(broken, poison.modules[name].B)})
    jobs = [
        TrainJob("well", random_rows(1, 5), CONFIG),
        TrainJob("ill", random_rows(2, 5), CONFIG, frozen=recipe(poison)),
        TrainJob("also well", random_rows(3, 5), CONFIG),
    ]
    done = {trained.job_id: trained for trained in train(base, jobs, engine=EngineConfig(slots=3))}
    assert done["ill"].diverged
    for job in (jobs[0], jobs[2]):
        alone = next(train(base, [job], engine=EngineConfig(slots=1)))
        assert not done[job.job_id].diverged
        for (_, a), (_, b) in zip(done[job.job_id].adapter.tensors(), alone.adapter.tensors(), strict=True):
            assert float((a - b).abs().max()) < 1e-12
