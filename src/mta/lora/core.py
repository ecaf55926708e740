"""The compact form of an adapter: what is trained lies inside the frozen composition, between its factors.

A composition of K terms with factors A_k (r_k, d_in), B_k (d_out, r_k) has the delta B A, where A and B are its terms'
factors one under, one beside the other, of rank R, the weights in B. Two forms change it from within:

- a core C (R, R) of each layer:             delta = B (I + C) A
- coefficients c (K,) of each layer:         delta = sum_k (1 + c_k) B_k A_k

Both start from zeros, so that training starts from the composition; a user's part is R^2 or K values a layer, where an
adapter of rank r has r (d_in + d_out). Either may be trained together with an adapter on top. The result can be served
as an adapter like any other, since B C A is one.

Sources: LoRA-XS (Balazy et al. 2024), a small matrix between frozen factors; LoraHub (Huang et al. 2024), one weight a
module for each adapter, there by search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum, Factors, adapter_from_tensors
from mta.lora.row_stack import ApartStack
from mta.lora.stacked import Shapes, initial_A

CHANGE = ".C"
"""Ending of the names of cores and coefficients."""


@dataclass(frozen=True, slots=True)
class Composition:
    """One layer of a frozen composition."""

    A: Tensor
    """(R, d_in)"""
    B: Tensor
    """(d_out, R), the terms' weights folded in"""
    terms: Tensor
    """(R,) int64: the term that each rank belongs to"""


def compositions(frozen: AdapterSum) -> dict[str, Composition]:
    """Return each layer's factors, with the term that each rank comes from."""
    found = {}
    for module in frozen.modules:
        parts = [
            (place, weight, adapter.modules[module])
            for place, (weight, adapter) in enumerate(frozen.terms)
            if module in adapter.modules
        ]
        found[module] = Composition(
            torch.cat([factors.A for _, _, factors in parts]),
            torch.cat([factors.B * weight for _, weight, factors in parts], dim=1),
            torch.cat([torch.full((len(factors.A),), place) for place, _, factors in parts]),
        )
    return found


def change_inside(u: Tensor, change: Tensor, terms: Tensor) -> Tensor:
    """Return what a change from within adds to the products `u = A x`, (n, R), before they meet B.

    Source: see the module   C u   or   c_k u_k

    Args:
        u: (n, R)
        change: C (R', R') or c (K,), R' and K at least what is needed.
        terms: (R,) the term of each rank.
    """
    return u * change[terms] if change.dim() == 1 else u @ change[: len(terms), : len(terms)].T


def own_part(frozen: AdapterSum | None, tensors: Mapping[str, Tensor]) -> Adapter:
    """Return what was trained as an adapter on top of the composition, whatever its form.

    A change from within is B C as the adapter's B over the composition's own A.

    Args:
        frozen: what lay beneath in training; not needed for a plain adapter.
        tensors: what was trained, by name, as `CoreStack.export` or a training of adapters gives it.

    Raises:
        AdapterError: it lies inside a composition, and this is another one or none.
    """
    layers = compositions(frozen) if frozen else {}
    found: dict[str, Factors] = {}
    on_top = {name: value for name, value in tensors.items() if not name.endswith(CHANGE)}
    if on_top:
        found |= adapter_from_tensors(on_top, where="the adapter on top").modules
    for name in tensors.keys() - on_top.keys():
        module = name.removesuffix(CHANGE)
        inside = _changed(layers.get(module), tensors[name], module)
        top = found.get(module)
        found[module] = Factors(torch.cat([inside.A, top.A]), torch.cat([inside.B, top.B], dim=1)) if top else inside
    return Adapter({name: found[name] for name in sorted(found)})


def _changed(layer: Composition | None, change: Tensor, module: str) -> Factors:
    """Return a change inside one layer's composition as factors of their own."""
    wanted = 0 if layer is None else int(layer.terms.max()) + 1 if change.dim() == 1 else len(layer.terms)
    if layer is None or len(change) != wanted:
        raise AdapterError(
            f"module {module}: what was trained fits a composition of {len(change)}, what lies beneath has {wanted}; "
            "it was trained over other anchors - give those, or adapt this user again"
        )
    identity = torch.eye(len(layer.A), dtype=layer.B.dtype, device=layer.B.device)
    return Factors(layer.A, layer.B @ change_inside(identity, change.to(layer.B), layer.terms).T)


class CoreStack(ApartStack):
    """S slots of changes in training, each inside a frozen composition of its own.

    Args:
        shapes: layers with (d_out, d_in).
        slots: S.
        frozen_rank: R, the largest rank of a composition.
        terms: K, the most terms of a composition; None trains cores in place of coefficients.
        rank: r of an adapter trained on top; 0 trains none.
        scaling: alpha / r of that adapter.
        like: an empty tensor of the device and dtype of what is trained.
        compute_dtype: dtype of the model's activations.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        slots: int,
        frozen_rank: int,
        terms: int | None,
        rank: int,
        scaling: float,
        like: Tensor,
        compute_dtype: torch.dtype,
    ) -> None:
        self._rank, self._scaling, self._dtype = rank, scaling, compute_dtype
        values: dict[str, tuple[int, ...]] = {}
        for name, (d_out, d_in) in shapes.items():
            values[f"{name}{CHANGE}"] = (frozen_rank, frozen_rank) if terms is None else (terms,)
            if rank:
                values |= {f"{name}.A": (rank, d_in), f"{name}.B": (d_out, rank)}
        super().__init__(shapes, values, slots=slots, like=like)
        self._frozen: dict[int, dict[str, Composition]] = {}

    def fill(self, slot: int, frozen: AdapterSum, *, seed: int, key: str) -> None:
        """Start in a slot: a change of zeros inside the composition, and on top, if at all, seeded A and zero B.

        Raises:
            AdapterError: the composition has a layer that is not trained here.
        """
        self.clear(slot)
        layers = compositions(frozen)
        if unknown := sorted(set(layers) - set(self.shapes)):
            raise AdapterError(
                f"what lies beneath has modules that are not trained here, for example {unknown[0]}; train with the "
                "target modules of the bank"
            )
        device = self.parameters.device
        self._frozen[slot] = {
            name: Composition(layer.A.to(device, self._dtype), layer.B.to(device, self._dtype), layer.terms.to(device))
            for name, layer in layers.items()
        }
        if self._rank:
            with torch.no_grad():
                for name, (_, d_in) in self.shapes.items():
                    start = initial_A((self._rank, d_in), seed=seed, key=key, module=name)
                    self._rows.value(slot, f"{name}.A").copy_(start)

    def clear(self, slot: int) -> None:
        """Zero everything a slot holds."""
        super().clear(slot)
        self._frozen.pop(slot, None)

    def added(self, module: str, slot: int, x: Tensor) -> Tensor:
        """Return what the changed composition and what is trained on top add; see `ApartStack.added`."""
        total = x.new_zeros(len(x), self.shapes[module][0])
        if layer := self._frozen[slot].get(module):
            change = self._leaf(slot, f"{module}{CHANGE}")
            u = x @ layer.A.T
            total = total + (u + change_inside(u, change, layer.terms)) @ layer.B.T
        if self._rank:
            A, B = self._leaf(slot, f"{module}.A"), self._leaf(slot, f"{module}.B")
            total = total + (x @ A.T) @ (B.T * self._scaling)
        return total

    def _leaf(self, slot: int, name: str) -> Tensor:
        return self._rows.leaf(slot, name).to(self._dtype)

    def export(self, slot: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return what a slot has trained on the CPU: `<module>.C`, and A and B on top with the scaling folded in.

        Cores are cut to the rank of the slot's composition, coefficients to its number of terms; a layer without a
        composition has none.
        """
        named = self._rows.named(self.parameters[slot] if values is None else values)
        found = {}
        for name, value in named.items():
            if not name.endswith(CHANGE):
                found[name] = value * self._scaling if name.endswith(".B") else value
            elif layer := self._frozen[slot].get(name.removesuffix(CHANGE)):
                found[name] = _cut(value, layer)
        return found


def _cut(change: Tensor, layer: Composition) -> Tensor:
    """Return a change without what it has beyond its composition."""
    if change.dim() == 1:
        return change[: int(layer.terms.max()) + 1].clone()
    return change[: len(layer.terms), : len(layer.terms)].clone()
