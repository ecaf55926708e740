"""What trainings by autograd have in common: slots whose values lie in rows, and tokens routed to them.

`RowStack` leaves to its subclasses what the slots add to a layer; those of an `ApartStack` add each for itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mta.lora.routed_linear import Stretch, stretches
from mta.lora.slot_rows import SlotRows
from mta.lora.stacked import Shapes, check_routed


class RowStack:
    """S slots of named values in training.

    Args:
        shapes: layers with (d_out, d_in).
        values: name -> shape of the value that each slot has under it.
        slots: S.
        like: an empty tensor of the device and dtype of what is trained.
    """

    def __init__(self, shapes: Shapes, values: Mapping[str, tuple[int, ...]], *, slots: int, like: Tensor) -> None:
        self.shapes, self.slots = dict(shapes), slots
        self._rows = SlotRows(values, slots=slots, like=like)
        self.parameters, self.gradients = self._rows.parameters, self._rows.gradients
        self._stretches: tuple[Stretch, ...] = ()

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self.shapes.keys()

    def clear(self, slot: int) -> None:
        """Zero a slot's values and gradients."""
        self._rows.clear(slot)

    def prepare(self, slot: int, job: object, step: int) -> None:
        """Change nothing from update to update."""

    def route(self, slots: Sequence[int], lengths: Sequence[int], people: Sequence[int] = ()) -> None:
        """Say which slot each row of the next pack belongs to, and how many tokens it has; people play no part."""
        self._stretches = stretches(slots, lengths)

    def regularize(self, slot: int) -> None:
        """Add nothing: the loss is the likelihood of the answers alone."""


class ApartStack(RowStack, ABC):
    """S slots of which each adds to a layer what it makes of its own tokens."""

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's slot adds."""
        check_routed(self._stretches, x, module)
        added = [self.added(module, part.slot, x[0, part.start : part.stop]) for part in self._stretches]
        return torch.nn.functional.linear(x, weight, bias) + torch.cat(added)[None]

    @abstractmethod
    def added(self, module: str, slot: int, x: Tensor) -> Tensor:
        """Return what a slot adds to a layer's output for its tokens `x (n, d_in)`, (n, d_out)."""
