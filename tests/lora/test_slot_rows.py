"""Rows of named values: gradients by autograd land in the slot's own row and nowhere else."""

from __future__ import annotations

import torch

from mta.lora.slot_rows import SlotRows

SHAPES = {"gate": (3,), "router": (2, 4)}


def filled() -> SlotRows:
    rows = SlotRows(SHAPES, slots=3, like=torch.empty(0, dtype=torch.float64))
    rows.parameters.copy_(torch.randn(rows.parameters.shape, generator=torch.Generator().manual_seed(0)))
    return rows


def test_values_are_views_of_the_rows() -> None:
    rows = filled()
    assert rows.parameters.shape == (3, 11)
    rows.value(1, "router").fill_(7.0)
    assert rows.parameters[1, 3:].eq(7.0).all()
    assert not rows.parameters[[0, 2]].eq(7.0).any()


def test_gradients_are_those_of_autograd_and_touch_one_row() -> None:
    rows = filled()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gate, router = rows.leaf(2, "gate"), rows.leaf(2, "router")
    (torch.sigmoid(x @ gate).sum() * router.square().sum()).backward()
    plain_gate = rows.value(2, "gate").clone().requires_grad_()
    plain_router = rows.value(2, "router").clone().requires_grad_()
    (torch.sigmoid(x @ plain_gate).sum() * plain_router.square().sum()).backward()
    assert plain_gate.grad is not None
    assert plain_router.grad is not None
    assert torch.equal(rows.gradients[2, :3], plain_gate.grad)
    assert torch.equal(rows.gradients[2, 3:], plain_router.grad.flatten())
    assert not rows.gradients[:2].any()


def test_uses_and_backward_passes_add_up() -> None:
    rows = filled()
    for _ in range(2):
        leaf = rows.leaf(0, "gate")
        (leaf.sum() + 2 * leaf.sum()).backward()
    assert torch.equal(rows.gradients[0, :3], torch.full((3,), 6.0, dtype=torch.float64))


def test_a_cleared_slot_is_zero_and_the_others_stay() -> None:
    rows = filled()
    before = rows.parameters.clone()
    rows.gradients.fill_(1.0)
    rows.clear(1)
    assert not rows.parameters[1].any()
    assert not rows.gradients[1].any()
    assert torch.equal(rows.parameters[[0, 2]], before[[0, 2]])
    named = rows.named(rows.parameters[0])
    assert torch.equal(named["router"], rows.value(0, "router"))
