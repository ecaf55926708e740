"""Named values of many slots, each slot's in one row of a matrix, for trainings that are not plain LoRA.

`TrainableStack` lays out its own rows because its gradients are written by hand; here autograd makes them: `leaf` hands
out a slot's value as a tensor of its own whose gradient is added to the slot's row, so that nothing of the size of all
slots is made in a backward pass.

Example:
    >>> rows = SlotRows({"q_proj.gate": (64,)}, slots=4, like=torch.empty(0))
    >>> (rows.leaf(2, "q_proj.gate") * x).sum().backward()     # fills rows.gradients[2]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class SlotRows:
    """S rows of named values with their gradients.

    Args:
        shapes: name -> shape of the value that each slot has under it.
        slots: S.
        like: an empty tensor of the wanted device and dtype.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, slots: int, like: Tensor) -> None:
        self.shapes = dict(shapes)
        self.parameters = torch.zeros(slots, sum(map(math.prod, self.shapes.values())), device=like.device).to(like)
        """(S, P)"""
        self.gradients = torch.zeros_like(self.parameters)
        """(S, P)"""
        self._starts: dict[str, int] = {}
        at = 0
        for name, shape in self.shapes.items():
            self._starts[name] = at
            at += math.prod(shape)

    def value(self, slot: int, name: str) -> Tensor:
        """Return one value as a view of its slot's row: writing to it writes to the row."""
        return self._view(self.parameters[slot], name)

    def leaf(self, slot: int, name: str) -> Tensor:
        """Return one value as a leaf of the graph; a backward pass adds its gradient to the slot's row."""
        leaf = self.value(slot, name).detach().requires_grad_()
        into = self._view(self.gradients[slot], name)
        leaf.register_hook(lambda gradient: _collect(into, gradient))  # type: ignore[no-untyped-call]
        return leaf

    def clear(self, slot: int) -> None:
        """Zero a slot's values and gradients."""
        self.parameters[slot].zero_()
        self.gradients[slot].zero_()

    def named(self, row: Tensor) -> dict[str, Tensor]:
        """Return the values of one `(P,)` row by name, copied to the CPU."""
        return {name: self._view(row, name).detach().cpu().clone() for name in self.shapes}

    def _view(self, row: Tensor, name: str) -> Tensor:
        shape = self.shapes[name]
        start = self._starts[name]
        return row[start : start + math.prod(shape)].view(shape)


def _collect(into: Tensor, gradient: Tensor) -> None:
    into.add_(gradient)
