"""Finished adapters of an inference batch: those that several users share are held, read and multiplied once.

A user merged from a bank is a weighted sum of the bank's anchors and of an adapter of her own. The stack holds every
distinct term of a batch once, one below the other, and for each user one weight per rank:

    y = x W_0^T + ((x A^T) * weights) B^T        A (R, d_in), B (R, d_out), weights (R,) zero where a term is not hers

Where rows are short, as in a step of decoding, that is what is computed: all R ranks for every row, since reading the
factors is what takes the time. Where rows are long, each row's own ranks are copied together first. Layers that
read the same input share the product with A. Weights are taken in where the layers' products are cut apart, which are
copied there anyway: adding up what lies apart in memory is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, AdapterSum, Factors, as_sum
from mta.lora.routed_linear import Layer, Route, Stretch, routed_linears, stretches
from mta.lora.stacked import Finished, RoutedStack, Shapes, check_routed, not_routed

_Add = Callable[[int, Tensor], Tensor]
"""A layer's number among those that read an input, its output (batch, T, d_out) -> the output with what users have."""
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
class _Layer:
    """One module's distinct terms, and what each user takes of them."""

    terms: tuple[Factors, ...]
    """of R ranks together"""
    weights: Tensor
    """(G, R)"""
    own: Tensor
    """(G, r) int64: the ranks with a weight, filled up with ranks without one"""


class _Joined:
    """Layers that read the same input: their terms one below the other, one layer's below the other's.

    Args:
        layers: one or more.
        like: an empty tensor of the device and dtype to hold them in.
    """

    def __init__(self, layers: Sequence[_Layer], like: Tensor) -> None:
        ranks = [layer.weights.shape[1] for layer in layers]
        self.A = torch.cat([term.A.to(like) for layer in layers for term in layer.terms])
        """(sum of R, d_in)"""
        self.As = torch.split(self.A, ranks)
        """(R, d_in) of each layer"""
        self.Bs = [torch.cat([term.B.to(like).T for term in layer.terms]) for layer in layers]
        """(R, d_out) of each layer"""
        self.layers = layers
        self.weights = torch.cat([layer.weights for layer in layers], dim=1)
        """(G, sum of R)"""
        starts = accumulate(ranks[:-1], initial=0)
        self.own = torch.cat([layer.own + start for layer, start in zip(layers, starts, strict=True)], dim=1)
        """(G, sum of r) int64: places in A"""
        self.own_weights = self.weights.gather(1, self.own)
        """(G, sum of r)"""

    def split(self, values: Tensor, *, own: bool = False) -> Sequence[Tensor]:
        """Cut values of all ranks, or of a user's own ones, (..., all of them), into each layer's."""
        return torch.split(values, [(layer.own if own else layer.weights).shape[1] for layer in self.layers], dim=-1)

    def of_stretch(self, part: Stretch) -> list[Route]:
        """Return what a stretch's user has on each layer."""
        routes = []
        for layer, A, B in zip(self.layers, self.As, self.Bs, strict=True):
            own = layer.own[part.slot]
            weighted = B[own] * layer.weights[part.slot, own, None]
            routes.append(Route(part.start, part.stop, A[own], weighted.T))
        return routes


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
        self._like = torch.empty(0, device=device, dtype=dtype)
        self._layers = _lay_out(users, shapes, self._like)
        self._joined: dict[tuple[str, ...], _Joined] = {}
        self._users = torch.empty(0, dtype=torch.int64)
        self._of_rows: dict[tuple[str, ...], Sequence[Tensor]] = {}
        self._stretches: tuple[Stretch, ...] = ()

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self._layers.keys()

    def route(self, rows: Tensor) -> None:
        """Choose each batch row's user, (batch,) indices."""
        self._users, self._stretches, self._of_rows = rows, (), {}

    def route_pack(self, adapters: Sequence[int], lengths: Sequence[int]) -> None:
        """Choose the user, and give the number of tokens, of each row of the next pack."""
        self._users = self._users[:0]
        self._stretches = stretches(adapters, lengths)

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's user has on it."""
        return next(self.linears(x, {module: (weight, bias)}))

    def linears(self, x: Tensor, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """Yield the outputs of layers that read the same input, each computed as it is asked for; see `linear`.

        What the model does with one, such as activating a gate, then finds it in the processor's cache.
        """
        names = tuple(weights)
        joined = self._together(names)
        if not len(self._users):
            check_routed(self._stretches, x, names[0])
            routes = zip(*map(joined.of_stretch, self._stretches), strict=True)
            layers = [Layer(*layer, of) for layer, of in zip(weights.values(), routes, strict=True)]
            yield from routed_linears(x, layers)
            return
        if x.dim() != 3 or x.shape[0] != len(self._users):
            raise not_routed(x, names[0], f"{len(self._users)} rows are routed")
        few = x.shape[1] * len(joined.As[0]) < WORTH_COPYING * joined.layers[0].own.shape[1]
        add = self._through_all_ranks(x, names) if few else self._through_own_ranks(x, joined)
        for number, (weight, bias) in enumerate(weights.values()):
            yield add(number, torch.nn.functional.linear(x, weight, bias))

    def _together(self, names: tuple[str, ...]) -> _Joined:
        """Return layers that read the same input, put together once."""
        if names not in self._joined:
            self._joined[names] = _Joined([self._layers[name] for name in names], self._like)
        return self._joined[names]

    def _through_all_ranks(self, x: Tensor, names: tuple[str, ...]) -> _Add:
        """Return what adds each row's user to a layer's output, every row by way of all ranks there are."""
        joined = self._joined[names]
        if names not in self._of_rows:  # once for all tokens of an answer
            self._of_rows[names] = joined.split(joined.weights[self._users, None])
        parts = joined.split(torch.nn.functional.linear(x, joined.A))  # (batch, T, R) each
        weights = self._of_rows[names]

        def add(number: int, y: Tensor) -> Tensor:
            B = joined.Bs[number]
            y.view(-1, y.shape[-1]).addmm_((parts[number] * weights[number]).view(-1, len(B)), B)
            return y

        return add

    def _through_own_ranks(self, x: Tensor, joined: _Joined) -> _Add:
        """Return what adds each row's user to a layer's output, by way of a copy of the row's own ranks."""
        A = _pick(joined.A, joined.own[self._users])  # (batch, sum of r, d_in)
        parts = joined.split(torch.bmm(x, A.transpose(1, 2)), own=True)  # (batch, T, r) each
        weights = joined.split(joined.own_weights[self._users, None], own=True)

        def add(number: int, y: Tensor) -> Tensor:
            B = _pick(joined.Bs[number], joined.layers[number].own[self._users])
            return y.baddbmm_(parts[number] * weights[number], B)

        return add


def _pick(rows: Tensor, places: Tensor) -> Tensor:
    """Copy rows of (R, d) to (batch, r, d), for places (batch, r); several times as fast as indexing with them."""
    return rows.index_select(0, places.flatten()).view(*places.shape, rows.shape[1])


def _lay_out(users: Sequence[AdapterSum | None], shapes: Shapes, like: Tensor) -> dict[str, _Layer]:
    """Find each module's distinct terms and what users take of them."""
    distinct = {id(adapter): adapter for user in users if user for _, adapter in user.terms}
    number = {key: place for place, key in enumerate(distinct)}
    taken = [[(weight, number[id(adapter)]) for weight, adapter in user.terms] if user else [] for user in users]
    layouts: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # most modules of a model have the same one
    layers = {}
    for name in dict.fromkeys(name for adapter in distinct.values() for name in adapter.modules):
        if name not in shapes:
            raise AdapterError(
                f"the adapter has a module {name} that this base model does not have; "
                "use the base model it was trained on"
            )
        found = [adapter.modules.get(name) for adapter in distinct.values()]
        terms = tuple(term for term in found if term is not None)
        _check_widths(name, terms, shapes[name])
        ranks = tuple(term.rank if term else 0 for term in found)
        if ranks not in layouts:
            weights = _weights(ranks, taken)
            layouts[ranks] = (weights.to(like), _ranks_with_weight(weights).to(like.device))
        layers[name] = _Layer(terms, *layouts[ranks])
    return layers


def _weights(ranks: Sequence[int], taken: Sequence[Sequence[tuple[float, int]]]) -> Tensor:
    """Return what users take of each rank, (G, R), from the ranks of terms and the weights and numbers of theirs."""
    starts = list(accumulate(ranks, initial=0))
    weights = torch.zeros(len(taken), starts[-1], dtype=torch.float64)
    for row, user in zip(weights, taken, strict=True):
        for weight, number in user:
            row[starts[number] : starts[number + 1]] += weight
    return weights


def _ranks_with_weight(weights: Tensor) -> Tensor:
    """Return for each row of (G, R) the places of its non-zero values first, as many for all as the fullest row has."""
    used = weights != 0
    return torch.sort(used.int(), dim=1, descending=True, stable=True).indices[:, : int(used.sum(dim=1).max())]


def _check_widths(name: str, terms: Iterable[Factors], shape: tuple[int, int]) -> None:
    for term in terms:
        if (term.B.shape[0], term.A.shape[1]) != shape:
            raise AdapterError(
                f"module {name}: the adapter maps {term.A.shape[1]} to {term.B.shape[0]} values, the base's layer "
                f"{shape[1]} to {shape[0]}; use the base model it was trained on"
            )
