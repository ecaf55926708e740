"""PROPER's experts: their formulas, and finished users of an inference batch.

Experts of groups lie over a population adapter; a user mixes them token by token and adds factors of her own. Her
router sees one token at a time, so that a token's weights are the same in a pack, in a padded batch and after a cache
of earlier tokens. `expert_training` trains all this.

Example:
    >>> mix_experts(x, experts.modules["mlp.up_proj"], weights)     # sum_e weights_e B_e A_e x, token by token
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, Factors, map_tensors
from mta.lora.routed_linear import Stretch, stretches
from mta.lora.stacked import Finished, Shapes, check_routed, not_routed


@dataclass(frozen=True, slots=True)
class ExpertFactors:
    """One module's experts side by side."""

    A: Tensor
    """(E, r, d_in)"""
    B: Tensor
    """(d_out, E, r), scaling folded in"""


@dataclass(frozen=True, slots=True)
class Experts:
    """What all users share: E experts per module over the population adapter."""

    population: Adapter
    modules: Mapping[str, ExpertFactors]
    fingerprint: str
    """Of everything that decided them."""


@dataclass(frozen=True, slots=True)
class UserFactors:
    """One user's part of one module."""

    A: Tensor
    """(r, d_in)"""
    B: Tensor
    """(d_out, r), scaling folded in"""
    V: Tensor
    """(E, r): what the user's own factors make of a token decides the experts' weights for it"""
    c: Tensor
    """(E,): weights before the softmax of a token of which they make nothing"""


# formulas ---------------------------------------------------------------------------------------------------------


def mix_experts(x: Tensor, experts: ExpertFactors, weights: Tensor) -> Tensor:
    """Return sum_e weights_e B_e A_e x, token by token.

    Args:
        x: (..., d_in)
        experts: E experts of one module.
        weights: (..., E), for each token.

    Returns:
        (..., d_out)
    """
    u = x @ experts.A.flatten(0, 1).T  # (..., E r)
    u = u.view(*x.shape[:-1], *experts.A.shape[:2]) * weights[..., None]  # (..., E, r)
    return u.flatten(-2) @ experts.B.flatten(1).T


def through(x: Tensor, factors: Factors) -> Tensor:
    """Return B A x, (..., d_out)."""
    return (x @ factors.A.T) @ factors.B.T


def user_part(x: Tensor, own: UserFactors) -> tuple[Tensor, Tensor]:
    """Return what a user's own factors add, and how she mixes the experts, token by token.

    Her router is aware of her LoRA: all it sees of a token is what her A makes of it.

        B_u A_u x_t   and   beta(x_t) = softmax(V A_u x_t + c)

    Args:
        x: (..., T, d_in)
        own: one user's factors, or one for each of the leading dimensions.

    Returns:
        ((..., T, d_out), (..., T, E)); weights of a token sum to 1.
    """
    u = x @ own.A.mT  # (..., T, r)
    return u @ own.B.mT, torch.softmax(u @ own.V.mT + own.c[..., None, :], dim=-1)


def group_weights(embeddings: Tensor, router: Tensor, offset: Tensor) -> Tensor:
    """Return how people mix the experts, (..., E), from their embeddings (..., D).

    g_u = softmax(W_r e_u + b)
    """
    return torch.softmax(embeddings @ router.T + offset, dim=-1)


def likeness(weights: Tensor) -> Tensor:
    """Return how alike people's weights (P, E) are: the mean of cos(g_u, g_v)^2 over pairs u != v; 0 for one person."""
    pairs = max(1, len(weights) * (len(weights) - 1))
    unit = torch.nn.functional.normalize(weights, dim=-1)
    alike = (unit @ unit.T).square()
    return torch.sub(alike.sum(), alike.diagonal().sum()) / pairs


def imbalance(weights: Tensor) -> Tensor:
    """Return KL(mean over people || uniform) of weights (P, E): 0 where all experts are used alike."""
    mean = weights.mean(dim=0)  # (E,)
    divergence: Tensor = torch.special.xlogy(mean, mean * len(mean)).sum()
    return divergence


# finished users ---------------------------------------------------------------------------------------------------


class SharedExperts:
    """Experts and population adapter where a model computes."""

    def __init__(self, experts: Experts, shapes: Shapes, device: torch.device | str, dtype: torch.dtype) -> None:
        self._population = map_tensors(experts.population, lambda t: t.to(device, dtype)).modules
        self._experts = {
            name: ExpertFactors(factors.A.to(device, dtype), factors.B.to(device, dtype))
            for name, factors in experts.modules.items()
        }
        for name, found in self._experts.items():
            widths = (found.B.shape[0], found.A.shape[2])
            if shapes.get(name) != widths:
                raise AdapterError(
                    f"module {name}: the experts map {widths[1]} to {widths[0]} values, the base's layer is "
                    f"{shapes.get(name)} (d_out, d_in); use the base model they were trained on"
                )

    def add(self, module: str, x: Tensor, weights: Tensor) -> Tensor:
        """Return the population's and the mixed experts' deltas, (..., d_out), for weights (..., E)."""
        return through(x, self._population[module]) + mix_experts(x, self._experts[module], weights)


@dataclass(frozen=True, slots=True)
class RoutedUser:
    """What one user has on top of the base model: the shared experts, mixed her way, and factors of her own."""

    experts: Experts
    weights: Tensor
    """(E,): how she mixes the experts where she has no router."""
    own: Mapping[str, UserFactors]
    """Her own part by module; a module without one adds the experts alone."""

    @property
    def modules(self) -> Mapping[str, ExpertFactors]:
        """The modules she has something on."""
        return self.experts.modules

    @property
    def rank(self) -> int:
        """Largest rank of her own factors; 0 where she has none."""
        return max((len(factors.A) for factors in self.own.values()), default=0)

    def factors(self, module: str) -> UserFactors:
        """Return her part of a module; without one, factors of rank 0 that mix the experts with her fixed weights."""
        if module in self.own:
            return self.own[module]
        experts, c = self.modules[module], self.weights.log()
        nothing = c.new_zeros
        return UserFactors(nothing(0, experts.A.shape[2]), nothing(len(experts.B), 0), nothing(len(c), 0), c)

    def make_stack(
        self,
        together: Sequence[Finished | None],
        shapes: Shapes,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> ExpertStack:
        """Make the stack of a batch; all others in it must lie on the same experts, or be the bare base model.

        Raises:
            AdapterError: they do not, or the experts belong to another base model.
        """
        users = [one for one in together if isinstance(one, RoutedUser)]
        if len(users) + sum(one is None for one in together) < len(together):
            raise AdapterError("routed experts and adapters cannot share a batch; answer them in separate calls")
        if len({user.experts.fingerprint for user in users}) > 1:
            raise AdapterError("users of different experts cannot share a batch; answer them in separate calls")
        places = [one if isinstance(one, RoutedUser) else None for one in together]
        return ExpertStack(self.experts, places, shapes, device=device, dtype=dtype)


def user_factors(tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, UserFactors]:
    """Put together what `UserStack` exported; without routers the experts are mixed as `weights (E,)` say."""
    own = {}
    for name in (key.removesuffix(".A") for key in tensors if key.endswith(".A")):
        A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
        V = tensors.get(f"{name}.V", A.new_zeros(len(weights), len(A)))
        own[name] = UserFactors(A, B, V, tensors.get(f"{name}.c", weights.log().to(A)))
    return own


class ExpertStack:
    """The distinct finished users of a batch over their shared experts, own factors padded with zeros to one rank.

    Args:
        experts: what all of them share.
        users: G users; None is the bare base model.
        shapes: modules of the model with (d_out, d_in).

    Raises:
        AdapterError: the experts belong to another base model.
    """

    def __init__(
        self,
        experts: Experts,
        users: Sequence[RoutedUser | None],
        shapes: Shapes,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._shared = SharedExperts(experts, shapes, device, dtype)
        self._present = torch.tensor([user is not None for user in users], device=device)[:, None, None].to(dtype)
        self._factors = {name: _pad_together(name, users, device, dtype) for name in experts.modules}
        self._gathered: dict[str, UserFactors] = {}
        self._stretches: tuple[Stretch, ...] = ()
        self._rows = torch.empty(0)

    @property
    def module_names(self) -> Iterable[str]:
        """Names of the linear layers this stack adds to."""
        return self._factors.keys()

    def route(self, rows: Tensor) -> None:
        """Choose each batch row's user, (batch,) indices; the factors are gathered once and reused every call."""
        self._gathered = {name: _pick(factors, rows) for name, factors in self._factors.items()}
        self._rows, self._stretches = rows, ()

    def route_pack(self, adapters: Sequence[int], lengths: Sequence[int]) -> None:
        """Choose the user, and give the number of tokens, of each row of the next pack."""
        self._gathered = {}
        self._stretches = stretches(adapters, lengths)

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with what each row's user has on it."""
        y = torch.nn.functional.linear(x, weight, bias)
        if not self._gathered:
            check_routed(self._stretches, x, module)
            return y + torch.cat([self._stretch(module, part, x) for part in self._stretches], dim=1)
        if x.dim() != 3 or x.shape[0] != len(self._rows):
            raise not_routed(x, module, f"{len(self._rows)} rows are routed")
        return y + self._present[self._rows] * self._delta(module, x, self._gathered[module])

    def _stretch(self, module: str, part: Stretch, x: Tensor) -> Tensor:
        factors = _pick(self._factors[module], slice(part.slot, part.slot + 1))
        return self._present[part.slot] * self._delta(module, x[:, part.start : part.stop], factors)

    def _delta(self, module: str, x: Tensor, own: UserFactors) -> Tensor:
        """Return everything on top of the base, (batch, T, d_out), for factors with a leading batch dimension."""
        delta, weights = user_part(x, own)
        return self._shared.add(module, x, weights) + delta


def _pick(factors: UserFactors, rows: Tensor | slice) -> UserFactors:
    return UserFactors(factors.A[rows], factors.B[rows], factors.V[rows], factors.c[rows])


def _pad_together(
    name: str, users: Sequence[RoutedUser | None], device: torch.device | str, dtype: torch.dtype
) -> UserFactors:
    """Put users' parts of one module side by side, each with a leading dimension G; None is all zeros."""
    parts = [user.factors(name) if user else None for user in users]
    rank = max(len(part.A) for part in parts if part)
    like = next(part for part in parts if part)
    count, d_in, d_out = len(like.c), like.A.shape[1], like.B.shape[0]
    shapes = ((rank, d_in), (d_out, rank), (count, rank), (count,))
    A, B, V, c = (torch.zeros(len(users), *shape, device=device, dtype=dtype) for shape in shapes)
    for index, part in enumerate(parts):
        if part:
            r = len(part.A)
            A[index, :r], B[index, :, :r] = part.A.to(A), part.B.to(B)
            V[index, :, :r], c[index] = part.V.to(V), part.c.to(c)
    return UserFactors(A, B, V, c)
