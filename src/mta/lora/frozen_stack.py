"""Finished adapters of an inference batch: those that several users share are held, read and multiplied once.

A user merged from a bank is a weighted sum of the bank's anchors and of an adapter of her own. The stack holds every
distinct term of a batch once, one below the other, and for each user one weight per rank:

    y = x W_0^T + ((x A^T) * weights) B^T        A (R, d_in), B (R, d_out), weights (R,) zero where a term is not hers

Where rows are short, as in a step of decoding, that is what is computed: all R ranks for every row, since reading the
factors is what takes the time. Where rows are long, each row's own ranks are copied together first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum, Factors, as_sum
from mta.lora.routed_linear import Route, Stretch, routed_linear, stretches
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
        self._weights: dict[str, Tensor] = {}
        self._stretches: tuple[Stretch, ...] = ()
        of_module = [user.modules if user else {} for user in users]
        for name in dict.fromkeys(name for modules in of_module for name in modules):
            if name not in shapes:
                raise AdapterError(
                    f"the adapter has a module {name} that this base model does not have; "
                    "use the base model it was trained on"
                )
            parts = [modules.get(name, ()) for modules in of_module]
            self._terms[name] = _side_by_side(name, parts, shapes[name], device, dtype)

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self._terms.keys()

    def route(self, rows: Tensor) -> None:
        """Choose each batch row's user, (batch,) indices."""
        self._users, self._stretches = rows, ()
        self._weights = {name: terms.weights[rows, None] for name, terms in self._terms.items()}

    def route_pack(self, adapters: Sequence[int], lengths: Sequence[int]) -> None:
        """Choose the user, and give the number of tokens, of each row of the next pack."""
        self._weights = {}
        self._stretches = stretches(adapters, lengths)

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's user has on it."""
        terms = self._terms[module]
        if not self._weights:
            check_routed(self._stretches, x, module)
            return routed_linear(x, weight, bias, [self._of_stretch(terms, part) for part in self._stretches])
        if x.dim() != 3 or x.shape[0] != len(self._users):
            raise not_routed(x, module, f"{len(self._users)} rows are routed")
        y = torch.nn.functional.linear(x, weight, bias)
        if x.shape[1] * len(terms.A) < WORTH_COPYING * terms.own.shape[1]:
            z = (x @ terms.A.T) * self._weights[module]  # (batch, T, R)
            y.view(-1, y.shape[-1]).addmm_(z.view(-1, z.shape[-1]), terms.B)
            return y
        A, B = terms.copy(self._users)
        return y.baddbmm_(torch.bmm(x, A.transpose(1, 2)), B)

    def _of_stretch(self, terms: _Terms, part: Stretch) -> Route:
        (A,), (B,) = terms.copy(torch.tensor([part.slot], device=terms.own.device))
        return Route(part.start, part.stop, A, B.T)


def _side_by_side(
    name: str,
    parts: Sequence[Sequence[tuple[float, Factors]]],
    shape: tuple[int, int],
    device: torch.device | str,
    dtype: torch.dtype,
) -> _Terms:
    """Lay out one module's distinct factors; `parts` are the weighted factors that each user adds up."""
    distinct = {id(factors): factors for user in parts for _, factors in user}
    starts: dict[int, int] = {}
    total = 0
    for key, factors in distinct.items():
        _check_width(name, factors, shape)
        starts[key] = total
        total += factors.rank
    weights = torch.zeros(len(parts), total, dtype=torch.float64)
    for index, user in enumerate(parts):
        for weight, factors in user:
            start = starts[id(factors)]
            weights[index, start : start + factors.rank] += weight
    return _Terms(
        A=torch.cat([factors.A.to(device, dtype) for factors in distinct.values()]),
        B=torch.cat([factors.B.T.to(device, dtype) for factors in distinct.values()]),
        weights=weights.to(device, dtype),
        own=_ranks_with_weight(weights).to(device),
    )


def _ranks_with_weight(weights: Tensor) -> Tensor:
    """Return for each row of (G, R) the places of its non-zero values first, as many for all as the fullest row has."""
    used = weights != 0
    return torch.sort(used.int(), dim=1, descending=True, stable=True).indices[:, : int(used.sum(dim=1).max())]


def _check_width(name: str, factors: Factors, shape: tuple[int, int]) -> None:
    d_out, d_in = shape
    if factors.A.shape[1] != d_in or factors.B.shape[0] != d_out:
        raise AdapterError(
            f"module {name}: the adapter maps {factors.A.shape[1]} to {factors.B.shape[0]} values, the base's layer "
            f"{d_in} to {d_out}; use the base model it was trained on"
        )
