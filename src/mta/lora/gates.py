"""The tensors of Per-Pcs: gates in training over frozen adapters, and adapters put together piece by piece.

A piece is one module's factors of one sharer's adapter; its gate `g (d_in,)` learns which inputs the piece is good for.
Afterwards gates are keys: a forward pass of somebody else's data compares each module's input with the gates of all
sharers and mixes the pieces that fit best, before the next module sees its input.

Example:
    >>> stack = ComposingStack(adapters, gates, top_k=3, temperature=1.0, like=torch.empty(0))
    >>> stack.route(pack.sources, pack.owners)
    >>> with attached(model, stack):
    ...     answer_nll(base, pack)
    >>> compose(adapters, stack.weights)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, Factors, map_tensors, mix_factors
from mta.lora.row_stack import ApartStack
from mta.lora.stacked import Shapes

NO_SCALE = 1e-30
"""Epsilon of the layer norm: a gate's length, which grows with the learning rate, then plays no part."""


def gated(x: Tensor, gate: Tensor, piece: Factors) -> Tensor:
    """Return what a gated piece adds for `x (n, d_in)`, (n, d_out).

    Source: Per-Pcs (Tan et al. 2024)   x <- sigmoid(x . g) x, then B A x
    """
    opening = torch.sigmoid(x @ gate)[:, None]  # (n, 1), one half while the gate is zero
    return (opening * (x @ piece.A.T)) @ piece.B.T


def ungated(x: Tensor, piece: Factors) -> Tensor:
    """Return what a piece adds for `x (n, d_in)`, (n, d_out)."""
    return (x @ piece.A.T) @ piece.B.T


def piece_scores(x: Tensor, shares: Tensor, gates: Tensor) -> Tensor:
    """Say how well each sharer's piece fits some inputs.

    Source: Per-Pcs (Tan et al. 2024)   s_i = mean_t LN(x_t) . LN(g_i) / sqrt(d_in)

    Args:
        x: (n, d_in) inputs of the module.
        shares: (n,) each input's share of the mean, sum 1.
        gates: (M, d_in).

    Returns:
        (M,) scores; a gate of zeros scores 0.
    """
    mean = shares @ _normal(x)  # (d_in,)
    return _normal(gates) @ mean / math.sqrt(gates.shape[1])


def _normal(vectors: Tensor) -> Tensor:
    """Layer norm over the last dimension, without factor or offset, in float32 at least."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=NO_SCALE)


def piece_weights(scores: Tensor, *, top_k: int, temperature: float) -> Tensor:
    """Turn scores into the weights of all sharers, (M,): a softmax over the `top_k` best, 0 for the others.

    Of equal scores the earlier sharer's goes first; with fewer than `top_k` sharers all are mixed.
    """
    best = torch.sort(scores, descending=True, stable=True).indices[:top_k]
    return torch.zeros_like(scores).index_copy(0, best, torch.softmax(scores[best] / temperature, dim=0))


def compose(sharers: Sequence[Adapter], weights: Mapping[str, Tensor]) -> Adapter:
    """Mix pieces into one adapter, each module with weights of its own; A and B are mixed separately.

    Source: Per-Pcs (Tan et al. 2024)   A = sum_i w_i A_i,   B = sum_i w_i B_i

    The mean of several such adapters, A and B separately, is the one composed with the mean of their weights.

    Args:
        sharers: M adapters.
        weights: module -> (M,).
    """
    modules: dict[str, Factors] = {}
    for name, row in weights.items():
        used = row.nonzero().flatten().tolist()
        pieces = [Adapter({name: sharers[index].modules[name]}) for index in used]
        modules |= mix_factors(pieces, row[used].tolist()).modules
    return Adapter(modules)


class GateStack(ApartStack):
    """S slots of gates in training, each over a frozen adapter of its own, which they gate, and what lies beneath it.

    Args:
        shapes: gated modules with (d_out, d_in).
        slots: S.
        like: an empty tensor of the device and dtype of the gates.
        compute_dtype: dtype of the model's activations; frozen factors are kept in it, gates are cast to it.
    """

    def __init__(self, shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype) -> None:
        gates = {_gate(name): (d_in,) for name, (_, d_in) in shapes.items()}
        super().__init__(shapes, gates, slots=slots, like=like)
        self.compute_dtype = compute_dtype
        self._gated: dict[int, Adapter] = {}
        self._beneath: dict[int, Adapter] = {}

    def fill(self, slot: int, adapter: Adapter, beneath: Adapter | None) -> None:
        """Start gates of zeros in a slot.

        Args:
            slot: which row; whatever it held is gone.
            adapter: frozen; its pieces are gated.
            beneath: frozen, not gated, or None.

        Raises:
            AdapterError: a module of either is not among the gated ones, or has another width.
        """
        self.clear(slot)
        for part in (adapter, beneath):
            if part is not None:
                _require_fit(part, self.shapes)
        self._gated[slot] = self._ready(adapter)
        if beneath is not None:
            self._beneath[slot] = self._ready(beneath)

    def _ready(self, adapter: Adapter) -> Adapter:
        return map_tensors(adapter, lambda t: t.to(self.parameters.device, self.compute_dtype))

    def clear(self, slot: int) -> None:
        """Zero a slot's gates and forget its adapters."""
        super().clear(slot)
        self._gated.pop(slot, None)
        self._beneath.pop(slot, None)

    def added(self, module: str, slot: int, x: Tensor) -> Tensor:
        """Return what the gated piece and what lies beneath add, see `ApartStack.added`; only gates get gradients."""
        total = x.new_zeros(len(x), self.shapes[module][0])
        if piece := self._gated[slot].modules.get(module):
            total = total + gated(x, self._rows.leaf(slot, _gate(module)).to(x.dtype), piece)
        if (beneath := self._beneath.get(slot)) and (piece := beneath.modules.get(module)):
            total = total + ungated(x, piece)
        return total

    def export(self, slot: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return a slot's gates on the CPU, `<module>.gate (d_in,)`, from `values (P,)` where given."""
        return self._rows.named(self.parameters[slot] if values is None else values)


def _gate(module: str) -> str:
    return f"{module}.gate"


def stack_gates(exported: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the gates of M sharers side by side: module -> (M, d_in)."""
    names = [name.removesuffix(".gate") for name in exported[0]]
    return {name: torch.stack([gates[_gate(name)] for gates in exported]) for name in names}


def _require_fit(adapter: Adapter, shapes: Shapes) -> None:
    for name, factors in adapter.modules.items():
        found = (factors.B.shape[0], factors.A.shape[1])
        if name not in shapes or found != shapes[name]:
            wanted = f"{shapes[name][1]} to {shapes[name][0]}" if name in shapes else "none"
            raise AdapterError(
                f"module {name}: the adapter maps {found[1]} to {found[0]} values, the gated layer {wanted}; "
                "use the base model and the target modules of the bank"
            )


class ComposingStack:
    """Puts an adapter together from the sharers' pieces while one batch goes through the model.

    Modules come in the order in which the model computes them, so each sees what the mixed pieces before it have made
    of the batch.

    Args:
        sharers: M adapters with equal modules and shapes.
        gates: module -> (M, d_in), the sharers' gates.
        beneath: frozen adapter beneath the pieces, or None.
        top_k: pieces mixed per module.
        temperature: of the softmax over their scores.
        like: an empty tensor of the model's device and dtype.
    """

    def __init__(
        self,
        sharers: Sequence[Adapter],
        gates: Mapping[str, Tensor],
        *,
        beneath: Adapter | None = None,
        top_k: int,
        temperature: float,
        like: Tensor,
    ) -> None:
        self.top_k, self.temperature = top_k, temperature
        self._sharers = [map_tensors(adapter, lambda t: t.to(like)) for adapter in sharers]
        wide = like.to(torch.promote_types(like.dtype, torch.float32))
        self._gates = {name: rows.to(wide) for name, rows in gates.items()}
        self._beneath = map_tensors(beneath, lambda t: t.to(like)) if beneath else Adapter({})
        self._sources, self._shares = wide.long(), wide
        self.weights: dict[str, Tensor] = {}
        """Module -> (M,) weights that the last batch gave the sharers."""

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return dict.fromkeys([*self._gates, *self._beneath.modules])

    def route(self, sources: Tensor, owners: Tensor) -> None:
        """Say which tokens of the next pack predict an answer token, and of which row.

        Scores are means over these tokens of each row, then over the rows.

        Args:
            sources: (n,) positions in the pack.
            owners: (n,) rows from 0, each with at least one position.
        """
        counts = torch.bincount(owners)  # (rows,)
        self._sources, self._shares = sources, (1 / (counts[owners] * len(counts)).double()).to(self._shares)
        self.weights = {}

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Choose and mix the module's pieces, and return the layer's output with them and what lies beneath."""
        added = torch.zeros((), dtype=x.dtype, device=x.device)
        if module in self._gates:
            scores = piece_scores(x[0, self._sources], self._shares, self._gates[module])
            row = piece_weights(scores, top_k=self.top_k, temperature=self.temperature)
            self.weights[module] = row.cpu()
            added = added + ungated(x[0], compose(self._sharers, {module: row}).modules[module])
        if piece := self._beneath.modules.get(module):
            added = added + ungated(x[0], piece)
        return torch.nn.functional.linear(x, weight, bias) + added
