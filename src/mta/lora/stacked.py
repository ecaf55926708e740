"""What a model needs of many adapters at once, and the stack that trains them.

`TrainableStack` holds S slots of trainable factors over S frozen compositions (un-merged anchors, population), each row
of tokens routed to its own; `mta.lora.frozen_stack` has its counterpart for finished adapters.

All trainable values of one slot lie in one contiguous row of `parameters (S, P)`, so that the optimiser, the
checkpoint and the clean-up of a slot are row operations. Row 0 of a stack knows nothing of row 1: gradients of
different slots are disjoint by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum
from mta.lora.grouped_linear import Collect, GroupedLayer, can_group, fill_ranks, grouped_linears
from mta.lora.routed_linear import Layer, Route, Stretch, routed_linears, stretches
from mta.seeds import stable_seed
from mta.transfer import send, send_integers

Shapes = Mapping[str, tuple[int, int]]
"""Module name -> (d_out, d_in) of the linear layer."""


class Stack(Protocol):
    """What a model needs of a stack: the modules it touches and what it makes of each one's output."""

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the module's output for `x (batch, T, d_in)`, (batch, T, d_out), each row's delta included."""


@runtime_checkable
class GroupingStack(Stack, Protocol):
    """A stack that does better with layers that read the same input when it is given them together."""

    def linears(self, x: Tensor, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """Return the output of each of the modules named in `weights` (weight and bias), as `linear` does of one.

        They may be computed one by one as they are asked for.
        """


class RoutedStack(Stack, Protocol):
    """A stack of finished things whose rows say which of them they go through."""

    def route(self, rows: Tensor) -> None:
        """Choose what each row of a padded batch goes through, (batch,) indices; holds until the next choice."""

    def route_pack(self, adapters: Sequence[int], lengths: Sequence[int]) -> None:
        """Choose the same for each row of the next pack, and give its number of tokens."""


class Overlay(Protocol):
    """Something finished on top of a base model that is no plain adapter, for example experts routed by token."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """What it has on each linear layer it touches, by the layer's name."""

    @property
    def rank(self) -> int:
        """Largest rank of what belongs to its user alone."""

    def make_stack(
        self,
        together: Sequence[Finished | None],
        shapes: Shapes,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> RoutedStack:
        """Make the stack of a batch, itself among others; see `inference_stack`."""


Finished = Adapter | AdapterSum | Overlay
"""What a request can be answered with."""


@dataclass(frozen=True, slots=True)
class OverlayRecipe:
    """An overlay as the way to get it, as `Recipe` is of an adapter."""

    fingerprint: str
    """Identifies the result."""
    rank: int
    parts: Callable[[], Overlay]
    """Gets it."""


def not_routed(x: Tensor, module: str, routed: str) -> AdapterError:
    """Return the error of an input whose rows are not those that `routed` says are routed."""
    return AdapterError(
        f"module {module} got input of shape {tuple(x.shape)} while {routed}; route every row of the batch or pack "
        "before its forward pass"
    )


def initial_A(shape: tuple[int, int], *, seed: int, key: str, module: str) -> Tensor:
    """Draw the initial A of one module, (r, d_in), uniform in +-1/sqrt(d_in) as PEFT does.

    The draw depends on (seed, key, module) alone: not on the slot, the batch or the device.
    """
    generator = torch.Generator().manual_seed(stable_seed(seed, "A", key, module))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)


@dataclass(slots=True)
class _ModuleSlots:
    """One module's slots: trainable factors as views of the parameter rows, frozen factors beside them."""

    A: Tensor
    """(S, r, d_in)"""
    B: Tensor
    """(S, d_out, r)"""
    frozen_A: Tensor
    """(S, R, d_in), R = 0 where nothing lies beneath"""
    frozen_B: Tensor
    """(S, d_out, R)"""
    gradient_A: Tensor | None
    """(S, r, d_in), None where A is fixed"""
    gradient_B: Tensor
    """(S, d_out, r)"""
    seen: Tensor | None = None
    """(S, d_in): what A's columns are multiplied by in training, 0 for input features left out; None: nothing is."""

    def A_seen(self, slots: Tensor | int) -> Tensor:
        """Return the A of one slot, (r, d_in), or several, as an update sees it, in the dtype of the frozen ones."""
        A = self.A[slots]
        if self.seen is not None and torch.is_grad_enabled():
            A = A * self.seen[slots].unsqueeze(-2)
        return A.to(self.frozen_A.dtype)

    def route(self, stretch: Stretch, scaling: float) -> Route:
        """Return one slot's frozen and trainable factors as one adapter, in the dtype of the frozen ones."""
        slot = stretch.slot
        A, B = self.A_seen(slot), (self.B[slot] * scaling).to(self.frozen_B.dtype)
        if self.frozen_A.shape[1]:
            A = torch.cat([self.frozen_A[slot], A], dim=0)
            B = torch.cat([self.frozen_B[slot], B], dim=1)
        gradient_A = None if self.gradient_A is None else self.gradient_A[slot]
        return Route(stretch.start, stretch.stop, A, B, gradient_A, self.gradient_B[slot], scaling)

    def group(self, weight: Tensor, bias: Tensor | None, slots: Tensor, scaling: float) -> GroupedLayer:
        """Return the factors of the slots of G stretches, (G,), side by side."""
        A = torch.cat([self.frozen_A[slots], self.A_seen(slots)], dim=1)
        B = torch.cat([self.frozen_B[slots], (self.B[slots] * scaling).to(self.frozen_B.dtype)], dim=2)
        collect = Collect(slots, self.gradient_A, self.gradient_B, self.frozen_A.shape[1], scaling)
        return GroupedLayer(weight, bias, *fill_ranks(A, B), collect)


class TrainableStack:
    """S slots of adapters in training, over S frozen compositions.

    Args:
        shapes: target modules with (d_out, d_in).
        slots: S.
        rank: r of the trainable factors.
        scaling: alpha / r, applied in the forward pass and folded into B on export.
        frozen_rank: R, the largest rank of a frozen composition; 0 for none.
        train_a: False keeps each slot's A as it was set.
        dtype: dtype of parameters, gradients and moments (the master copy).
        compute_dtype: dtype of the model's activations; factors are cast to it in the forward pass.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        slots: int,
        rank: int,
        scaling: float,
        frozen_rank: int = 0,
        train_a: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.slots, self.rank, self.scaling, self.train_a = slots, rank, scaling, train_a
        self.compute_dtype = compute_dtype or dtype
        self._stretches: tuple[Stretch, ...] = ()
        self._groups: tuple[Tensor, Tensor] | None = None
        self._grouping = False
        width_a = sum(rank * d_in for _, d_in in self.shapes.values())
        width_b = sum(d_out * rank for d_out, _ in self.shapes.values())
        trainable = width_a + width_b if train_a else width_b
        self.parameters = torch.zeros(slots, trainable, device=device, dtype=dtype)
        """(S, P): one row of trainable values per slot."""
        self.gradients = torch.zeros_like(self.parameters)
        """(S, P): filled by backward passes, same layout."""
        self.fixed_a = None if train_a else torch.zeros(slots, width_a, device=device, dtype=dtype)
        beneath = frozen_rank * sum(map(sum, self.shapes.values()))
        self.frozen = torch.zeros(slots, beneath, device=device, dtype=self.compute_dtype)
        """(S, F): the frozen composition beneath each slot, module by module A and B."""
        self.frozen_rank = frozen_rank
        self._modules = self._make_views()

    def _make_views(self) -> dict[str, _ModuleSlots]:
        values = self._views(self.parameters, self.rank, fixed_a=self.fixed_a)
        gradients = self._views(self.gradients, self.rank, fixed_a=self.fixed_a)
        beneath = self._views(self.frozen, self.frozen_rank)
        return {
            name: _ModuleSlots(*values[name], *beneath[name], gradient_A if self.train_a else None, gradient_B)
            for name, (gradient_A, gradient_B) in gradients.items()
        }

    def _views(self, rows: Tensor, rank: int, *, fixed_a: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each module's A (S, rank, d_in) and B (S, d_out, rank) as views of rows: module by module A, then B.

        Where `fixed_a` is given, its rows hold every A, and `rows` every B.
        """
        cut = _Cut(rows)
        cut_A = cut if fixed_a is None else _Cut(fixed_a)
        return {
            name: (cut_A.next((rank, d_in)), cut.next((d_out, rank))) for name, (d_out, d_in) in self.shapes.items()
        }

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self.shapes.keys()

    def fill(self, slot: int, *, seed: int, key: str, frozen: Adapter | None) -> None:
        """Start a new adapter in a slot: seeded A, zero B, and the frozen composition beneath it.

        Args:
            slot: which row; whatever it held is overwritten.
            seed: seed of the initial A.
            key: what else decides the initial A; equal keys start from equal A (a bank shares one).
            frozen: finished adapter beneath, of rank at most `frozen_rank`, or None.

        Raises:
            AdapterError: the frozen adapter does not fit the modules or the rank.
        """
        self.clear(slot)
        row = torch.zeros(1, self.parameters.shape[1])  # put together here, so that it goes to the device in one piece
        fixed = None if self.fixed_a is None else torch.zeros(1, self.fixed_a.shape[1])
        for name, (A, _) in self._views(row, self.rank, fixed_a=fixed).items():
            A[0] = initial_A((self.rank, A.shape[2]), seed=seed, key=key, module=name)
        with torch.no_grad():
            self.parameters[slot].copy_(row[0])
            if self.fixed_a is not None and fixed is not None:
                self.fixed_a[slot].copy_(fixed[0])
        if frozen is not None:
            self._set_frozen(slot, frozen)

    def _set_frozen(self, slot: int, frozen: Adapter) -> None:
        unknown = sorted(set(frozen.modules) - set(self.shapes))
        if unknown:
            raise AdapterError(
                f"the frozen adapter has modules that are not trained here, for example {unknown[0]}; "
                "train with the target modules of the bank"
            )
        where = next(iter(frozen.modules.values())).A.device if frozen.modules else self.frozen.device
        row = torch.zeros(1, self.frozen.shape[1], device=where, dtype=self.frozen.dtype)
        views = self._views(row, self.frozen_rank)
        for name, factors in frozen.modules.items():
            A, B = (view[0] for view in views[name])
            if factors.rank > len(A) or factors.A.shape[1] != A.shape[1]:
                raise AdapterError(
                    f"module {name}: the frozen adapter has A {tuple(factors.A.shape)}, there is room for "
                    f"{tuple(A.shape)}; it belongs to another base model or has a larger rank"
                )
            A[: factors.rank] = factors.A
            B[:, : factors.rank] = factors.B
        with torch.no_grad():
            self.frozen[slot].copy_(row[0])

    def group(self) -> None:
        """Compute all stretches of a layer at once from now on, where the device can; a matter of speed."""
        widths = [width for shape in self.shapes.values() for width in shape]
        self._grouping = can_group(self.parameters.device, self.compute_dtype, widths)

    def drop(self, slot: int, share: float, *, seed: int, key: str, step: int) -> None:
        """Leave a share of each layer's input features out of what A sees, until the next call for the slot.

        (x * m) A^T = x (A * m)^T for one mask m over features: dropout (Srivastava et al. 2014) on the input of A, one
        draw for all tokens of an update. The draw depends on seed, key, step and layer alone.
        """
        for name, module in self._modules.items():
            if module.seen is None:
                module.seen = torch.ones(self.slots, module.A.shape[2]).to(self.parameters)
            generator = torch.Generator().manual_seed(stable_seed(seed, "dropout", key, str(step), name))
            kept = torch.rand(module.A.shape[2], generator=generator) >= share
            module.seen[slot].copy_(send(kept.double() / (1 - share), self.parameters.device))

    def mask_gradients(self, slot: int) -> None:
        """Take what the update has left out off the gradients that a slot has collected."""
        for module in self._modules.values():
            if module.seen is not None and module.gradient_A is not None:
                module.gradient_A[slot].mul_(module.seen[slot])

    def clear(self, slot: int) -> None:
        """Zero everything a slot holds: parameters, gradients and frozen factors; nothing is left out any more."""
        with torch.no_grad():
            for module in self._modules.values():
                if module.seen is not None:
                    module.seen[slot].fill_(1)
            for rows in (self.parameters, self.gradients, self.frozen, self.fixed_a):
                if rows is not None:
                    rows[slot].zero_()

    def route(self, slots: Sequence[int], lengths: Sequence[int], people: Sequence[int] = ()) -> None:
        """Say which slot each row of the next pack belongs to, and how many tokens it has; people play no part."""
        self._stretches = stretches(slots, lengths)
        if self._grouping:
            device = self.parameters.device
            self._groups = (
                send_integers([part.slot for part in self._stretches], device),
                send(torch.tensor([part.stop for part in self._stretches], dtype=torch.int32), device),
            )

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's slot contributes, frozen and trainable parts together.

        Source: MTA Eq. 7   h = W_0 x + sum_k w_k B_k A_k x + (alpha / r) B_u A_u x
        """
        return next(self.linears(x, {module: (weight, bias)}))

    def linears(self, x: Tensor, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """Return the outputs of layers that read the same input, computed all at once; see `linear`."""
        check_routed(self._stretches, x, next(iter(weights)))
        if self._groups is not None:
            slots, ends = self._groups
            grouped = [
                self._modules[module].group(weight, bias, slots, self.scaling)
                for module, (weight, bias) in weights.items()
            ]
            return iter(grouped_linears(x, grouped, ends))
        layers = [Layer(weight, bias, self._routes(module)) for module, (weight, bias) in weights.items()]
        return iter(routed_linears(x, layers))

    def _routes(self, module: str) -> list[Route]:
        return [self._modules[module].route(stretch, self.scaling) for stretch in self._stretches]

    def export(self, slot: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return a slot's trained part as the tensors of a finished adapter (scaling folded into B), on the CPU.

        Args:
            slot: which row.
            values: (P,) parameter row to read instead of the current one, for example a best snapshot.

        Returns:
            `<module>.A (r, d_in)` and `<module>.B (d_out, r)`, as `Adapter.tensors` names them.
        """
        row = (self.parameters[slot] if values is None else values).detach().cpu()
        fixed = None if self.fixed_a is None else self.fixed_a[slot : slot + 1].cpu()
        tensors: dict[str, Tensor] = {}
        for name, (A, B) in self._views(row[None], self.rank, fixed_a=fixed).items():
            tensors[f"{name}.A"], tensors[f"{name}.B"] = A[0].clone(), B[0] * self.scaling
        return tensors


class _Cut:
    """Cuts rows into pieces, one after the other.

    Args:
        rows: (S, N)
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows, self._at = rows, 0

    def next(self, shape: tuple[int, int]) -> Tensor:
        """Return the next values of every row as a view, (S, *shape)."""
        start = self._at
        self._at += shape[0] * shape[1]
        return self._rows[:, start : self._at].view(len(self._rows), *shape)


def check_routed(routed: Sequence[Stretch], x: Tensor, module: str) -> None:
    """Check that a module's input is the pack that was routed.

    Raises:
        AdapterError: it is not.
    """
    tokens = routed[-1].stop if routed else 0
    if x.shape[0] != 1 or x.shape[1] != tokens:
        raise not_routed(x, module, f"one pack of {tokens} tokens is routed")
