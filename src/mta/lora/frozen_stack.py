"""Finished adapters of an inference batch: those that several users share are held, read and multiplied once.

A user merged from a bank is a weighted sum of the bank's anchors and of an adapter of her own. The stack holds every
distinct term of a batch once, one below the other, and for each user one weight per rank:

    y = x W_0^T + ((x A^T) * weights) B^T        A (R, d_in), B (R, d_out), weights (R,) zero where a term is not hers

Where rows are short, as in a step of decoding, that is what is computed: all R ranks for every row, since reading the
factors is what takes the time. Where rows are long, each row's own ranks are copied together first. Layers that
read the same input share the product with A.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum, Factors, as_sum
from mta.lora.routed_linear import Layer, Route, Stretch, routed_linears, stretches
from mta.lora.stacked import Finished, RoutedStack, Shapes, check_routed, not_routed

WORTH_COPYING = 64
"""Multiplying a row's token by a rank that is not its own costs about this part of copying one rank for a row."""


def inference_stack(
    together: Sequence[Finished | None],
    shapes: Shapes,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> RoutedStack:
    """Make the stack of a batch.

    Args:
        together: the distinct things in it, of one kind; None is the bare base model and goes with all kinds.
        shapes: modules of the model with (d_out, d_in).
        device: where the model computes.
        dtype: dtype of its activations.

    Raises:
        AdapterError: they are not of one kind, or belong to another base model.
    """
    sums: list[AdapterSum | None] = []
    for one in together:
        if one is None or isinstance(one, AdapterSum):
            sums.append(one)
        elif isinstance(one, Adapter):
            sums.append(as_sum(one))
        else:
            return one.make_stack(together, shapes, device=device, dtype=dtype)
    return FrozenStack(sums, shapes, device=device, dtype=dtype)


@dataclass(frozen=True, slots=True)
class _Terms:
    """One module's distinct terms, one below the other, and what each user takes of them."""

    A: Tensor
    """(R, d_in)"""
    B: Tensor
    """(R, d_out)"""
    weights: Tensor
    """(G, R)"""
    own: Tensor
    """(G, r) int64: the ranks with a weight, filled up with ranks without one"""

    def copy(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Copy the ranks that users have together, A (b, r, d_in) and B (b, r, d_out) with the weights in it."""
        own = self.own[users]
        return self.A[own], self.B[own] * self.weights[users].gather(1, own)[..., None]


@dataclass(frozen=True, slots=True)
class _Joined:
    """The terms of layers that read the same input, one layer's below the other's."""

    A: Tensor
    """(sum of R, d_in); the layers' own A are views of it"""
    weights: Tensor
    """(G, sum of R)"""
    own: Tensor
    """(G, sum of r) int64: places in A"""


def _join(terms: Sequence[_Terms]) -> _Joined:
    starts = list(accumulate((len(of.A) for of in terms), initial=0))
    return _Joined(
        A=torch.cat([of.A for of in terms]),
        weights=torch.cat([of.weights for of in terms], dim=1),
        own=torch.cat([of.own + start for of, start in zip(terms, starts, strict=False)], dim=1),
    )


class FrozenStack:
    """The distinct finished adapters of a batch.

    Args:
        users: G sums of adapters; None is the bare base model.
        shapes: modules of the model with (d_out, d_in).

    Raises:
        AdapterError: an adapter names a module the model does not have, or has another width.
    """

    def __init__(
        self, users: Sequence[AdapterSum | None], shapes: Shapes, *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self._terms: dict[str, _Terms] = {}
        self._users = torch.empty(0, dtype=torch.int64)
        self._joined: dict[tuple[str, ...], _Joined] = {}
        self._of_rows: dict[tuple[str, ...], Tensor] = {}
        self._stretches: tuple[Stretch, ...] = ()
        weights, like = _Weights(device, dtype), torch.empty(0, device=device, dtype=dtype)
        of_module = [user.modules if user else {} for user in users]
        for name in dict.fromkeys(name for modules in of_module for name in modules):
            if name not in shapes:
                raise AdapterError(
                    f"the adapter has a module {name} that this base model does not have; "
                    "use the base model it was trained on"
                )
            parts = [modules.get(name, ()) for modules in of_module]
            self._terms[name] = _side_by_side(name, parts, shapes[name], weights, like)

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self._terms.keys()

    def route(self, rows: Tensor) -> None:
        """Choose each batch row's user, (batch,) indices."""
        self._users, self._stretches, self._of_rows = rows, (), {}

    def route_pack(self, adapters: Sequence[int], lengths: Sequence[int]) -> None:
        """Choose the user, and give the number of tokens, of each row of the next pack."""
        self._users = self._users[:0]
        self._stretches = stretches(adapters, lengths)

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's user has on it."""
        return self.linears(x, {module: (weight, bias)})[module]

    def linears(self, x: Tensor, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        """Return the outputs of layers that read the same input; see `linear`."""
        terms = [self._terms[module] for module in weights]
        if not len(self._users):
            check_routed(self._stretches, x, next(iter(weights)))
            layers = [
                Layer(weight, bias, [self._of_stretch(of, part) for part in self._stretches])
                for of, (weight, bias) in zip(terms, weights.values(), strict=True)
            ]
            return dict(zip(weights, routed_linears(x, layers), strict=True))
        if x.dim() != 3 or x.shape[0] != len(self._users):
            raise not_routed(x, next(iter(weights)), f"{len(self._users)} rows are routed")
        ys = [torch.nn.functional.linear(x, weight, bias) for weight, bias in weights.values()]
        if x.shape[1] * len(terms[0].A) < WORTH_COPYING * terms[0].own.shape[1]:
            self._add_through_all_ranks(x, ys, tuple(weights))
        else:
            self._add_through_own_ranks(x, ys, tuple(weights))
        return dict(zip(weights, ys, strict=True))

    def _together(self, modules: tuple[str, ...]) -> _Joined:
        """Return the terms of layers that read the same input."""
        if modules not in self._joined:
            terms = [self._terms[module] for module in modules]
            self._joined[modules] = joined = _join(terms)
            views = torch.split(joined.A, [len(of.A) for of in terms])
            self._terms |= {m: replace(of, A=view) for m, of, view in zip(modules, terms, views, strict=True)}
        return self._joined[modules]

    def _add_through_all_ranks(self, x: Tensor, ys: Sequence[Tensor], modules: tuple[str, ...]) -> None:
        """Add what each row's user has to the outputs of layers, every row by way of all ranks there are."""
        joined = self._together(modules)
        if modules not in self._of_rows:  # once for all tokens of an answer
            self._of_rows[modules] = joined.weights[self._users, None]
        z = torch.nn.functional.linear(x, joined.A) * self._of_rows[modules]  # (batch, T, sum of R)
        Bs = [self._terms[module].B for module in modules]
        parts = torch.split(z.view(-1, z.shape[-1]), [len(B) for B in Bs], dim=1)
        for y, part, B in zip(ys, parts, Bs, strict=True):
            y.view(-1, y.shape[-1]).addmm_(part, B)

    def _add_through_own_ranks(self, x: Tensor, ys: Sequence[Tensor], modules: tuple[str, ...]) -> None:
        """Add what each row's user has to the outputs of layers, by way of a copy of the row's own ranks."""
        joined = self._together(modules)
        own = joined.own[self._users]  # (batch, sum of r)
        weights = joined.weights[self._users].gather(1, own)
        z = torch.bmm(x, joined.A[own].transpose(1, 2)) * weights[:, None]  # (batch, T, sum of r)
        terms = [self._terms[module] for module in modules]
        parts = torch.split(z, [of.own.shape[1] for of in terms], dim=2)
        for y, part, of in zip(ys, parts, terms, strict=True):
            y.baddbmm_(part, of.B[of.own[self._users]])

    def _of_stretch(self, terms: _Terms, part: Stretch) -> Route:
        (A,), (B,) = terms.copy(torch.tensor([part.slot], device=terms.own.device))
        return Route(part.start, part.stop, A, B.T)


Layout = tuple[tuple[int, ...], tuple[tuple[tuple[float, int], ...], ...]]
"""Ranks of one module's distinct terms, and for each user weights and numbers of the terms that are hers."""


class _Weights:
    """What users take of the ranks of a layout; most modules of a model have the same one."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._made: dict[Layout, tuple[Tensor, Tensor]] = {}

    def of(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the weights (G, R), and the ranks with a weight (G, r)."""
        if layout not in self._made:
            ranks, users = layout
            starts = list(accumulate(ranks, initial=0))
            weights = torch.zeros(len(users), starts[-1], dtype=torch.float64)
            for row, user in zip(weights, users, strict=True):
                for weight, number in user:
                    row[starts[number] : starts[number + 1]] += weight
            own = _ranks_with_weight(weights)
            self._made[layout] = (weights.to(self._device, self._dtype), own.to(self._device))
        return self._made[layout]


def _ranks_with_weight(weights: Tensor) -> Tensor:
    """Return for each row of (G, R) the places of its non-zero values first, as many for all as the fullest row has."""
    used = weights != 0
    return torch.sort(used.int(), dim=1, descending=True, stable=True).indices[:, : int(used.sum(dim=1).max())]


def _side_by_side(
    name: str, parts: Sequence[Sequence[tuple[float, Factors]]], shape: tuple[int, int], weights: _Weights, like: Tensor
) -> _Terms:
    """Lay out one module's distinct factors; `parts` are the weighted factors that each user adds up."""
    distinct = list({id(factors): factors for user in parts for _, factors in user}.values())
    number = {id(factors): place for place, factors in enumerate(distinct)}
    for factors in distinct:
        _check_width(name, factors, shape)
    users = tuple(tuple((weight, number[id(factors)]) for weight, factors in user) for user in parts)
    of_users, own = weights.of((tuple(factors.rank for factors in distinct), users))
    return _Terms(
        A=torch.cat([factors.A.to(like) for factors in distinct]),
        B=torch.cat([factors.B.to(like).T for factors in distinct]),
        weights=of_users,
        own=own,
    )


def _check_width(name: str, factors: Factors, shape: tuple[int, int]) -> None:
    d_out, d_in = shape
    if factors.A.shape[1] != d_in or factors.B.shape[0] != d_out:
        raise AdapterError(
            f"module {name}: the adapter maps {factors.A.shape[1]} to {factors.B.shape[0]} values, the base's layer "
            f"{d_in} to {d_out}; use the base model it was trained on"
        )
