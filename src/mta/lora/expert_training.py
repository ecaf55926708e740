"""PROPER's experts and users in training.

- `GroupStack`: experts on the rows of many people at once; a router mixes them by who a row's person is.
- `UserStack`: users' own factors and routers over experts that are finished and shared by all.

Example:
    >>> stack.route([0, 0, 1], pack.lengths, pack.people)     # slots of the rows of the next pack
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat

import torch
from torch import Tensor

from mta.errors import AdapterError
from mta.lora.adapter import Adapter, map_tensors
from mta.lora.experts import (
    ExpertFactors,
    Experts,
    SharedExperts,
    UserFactors,
    group_weights,
    mix_experts,
    through,
    user_part,
)
from mta.lora.row_stack import RowStack
from mta.lora.stacked import Shapes, check_routed, initial_A

EMBEDDINGS, ROUTER, OFFSET = "embeddings", "router.weight", "router.bias"
"""Names of what the group router trains: (P, D), (E, D) and (E,)."""


class GroupStack(RowStack):
    """S slots of experts in training, each slot one job of P people, over one frozen population adapter each.

    Args:
        shapes: modules with (d_out, d_in).
        slots: S.
        experts: E.
        rank: r of each expert.
        scaling: alpha / r, applied in the forward pass and folded into B on export.
        embeddings: (P, D), where the embeddings of a job's P people start.
        routed: whether the router is trained; without it everybody mixes all experts alike.
        penalty: what the loss adds for the people's weights (P, E).
        like: an empty tensor of the device and dtype of what is trained.
        compute_dtype: dtype of the model's activations.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        slots: int,
        experts: int,
        rank: int,
        scaling: float,
        embeddings: Tensor,
        routed: bool,
        penalty: Callable[[Tensor], Tensor],
        like: Tensor,
        compute_dtype: torch.dtype,
    ) -> None:
        self._experts, self._rank, self._scaling, self._routed = experts, rank, scaling, routed
        self._embeddings, self._penalty, self._dtype = embeddings, penalty, compute_dtype
        values: dict[str, tuple[int, ...]] = {}
        for name, (d_out, d_in) in shapes.items():
            values |= {f"{name}.A": (experts, rank, d_in), f"{name}.B": (d_out, experts, rank)}
        if routed:
            values |= {EMBEDDINGS: tuple(embeddings.shape), ROUTER: (experts, embeddings.shape[1]), OFFSET: (experts,)}
        super().__init__(shapes, values, slots=slots, like=like)
        self._uniform = torch.full((len(embeddings), experts), 1 / experts).to(like)
        self._beneath: dict[int, Adapter] = {}
        self._weights: list[Tensor] = []

    def fill(self, slot: int, population: Adapter, *, seed: int, key: str) -> None:
        """Start new experts in a slot: seeded A, each its own, zero B, a seeded router and the first embeddings.

        Raises:
            AdapterError: the population adapter does not have exactly the modules of the experts.
        """
        if set(population.modules) != set(self.shapes):
            raise AdapterError(
                f"the population adapter has {len(population.modules)} modules, the experts {len(self.shapes)}; train "
                "both with the same target modules"
            )
        self.clear(slot)
        with torch.no_grad():
            for name, (_, d_in) in self.shapes.items():
                for index, A in enumerate(self._rows.value(slot, f"{name}.A")):
                    A.copy_(initial_A((self._rank, d_in), seed=seed, key=f"{key}/{index}", module=name))
            if self._routed:
                router = self._rows.value(slot, ROUTER)
                router.copy_(initial_A((router.shape[0], router.shape[1]), seed=seed, key=key, module=ROUTER))
                self._rows.value(slot, EMBEDDINGS).copy_(self._embeddings)
        self._beneath[slot] = map_tensors(population, lambda t: t.to(self.parameters.device, self._dtype))

    def clear(self, slot: int) -> None:
        """Zero everything a slot holds and forget what lies beneath."""
        super().clear(slot)
        self._beneath.pop(slot, None)

    def route(self, slots: Sequence[int], lengths: Sequence[int], people: Sequence[int] = ()) -> None:
        """Say for each row of the next pack: its slot, its tokens, and whose it is among the job's people."""
        super().route(slots, lengths)
        whose = list(chain.from_iterable(map(repeat, people, lengths)))
        owners = torch.tensor(whose, device=self.parameters.device)  # (N,)
        self._weights = [
            self._people_weights(part.slot).to(self._dtype)[owners[part.start : part.stop]] for part in self._stretches
        ]

    def _people_weights(self, slot: int) -> Tensor:
        """Return how a slot's people mix its experts, (P, E), with a graph to what decides it."""
        if not self._routed:
            return self._uniform
        return group_weights(*(self._rows.leaf(slot, name) for name in (EMBEDDINGS, ROUTER, OFFSET)))

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with the population's and the mixed experts' deltas.

        h = W x + B_p A_p x + (alpha / r) sum_e g_{u,e} B_e A_e x
        """
        check_routed(self._stretches, x, module)
        added = []
        for part, weights in zip(self._stretches, self._weights, strict=True):
            tokens = x[0, part.start : part.stop]
            A, B = (self._rows.leaf(part.slot, f"{module}.{factor}").to(self._dtype) for factor in "AB")
            experts = mix_experts(tokens, ExpertFactors(A, B * self._scaling), weights)
            added.append(through(tokens, self._beneath[part.slot].modules[module]) + experts)
        return torch.nn.functional.linear(x, weight, bias) + torch.cat(added)

    def regularize(self, slot: int) -> None:
        """Add the penalty on the people's weights to a slot's gradient."""
        if self._routed:
            with torch.enable_grad():
                self._penalty(self._people_weights(slot)).backward()  # type: ignore[no-untyped-call]

    def export(self, slot: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return what a slot has trained as named tensors on the CPU, scaling folded into B."""
        named = self._rows.named(self.parameters[slot] if values is None else values)
        return {name: value * self._scaling if name.endswith(".B") else value for name, value in named.items()}


# users in training ------------------------------------------------------------------------------------------------


class UserStack(RowStack):
    """S slots of one user's own factors and router each, over experts that are finished and shared by all.

    Args:
        shapes: modules with (d_out, d_in).
        experts: what lies beneath.
        weights: user id -> (E,), how each user mixes the experts to begin with; where routers are trained, all above 0.
        slots: S.
        rank: r of the users' factors.
        scaling: alpha / r of the users' factors.
        routed: whether routers are trained; without that a user mixes the experts with the weights she started with.
        like: an empty tensor of the device and dtype of what is trained.
        compute_dtype: dtype of the model's activations.
    """

    def __init__(
        self,
        shapes: Shapes,
        experts: Experts,
        weights: Mapping[str, Tensor],
        *,
        slots: int,
        rank: int,
        scaling: float,
        routed: bool,
        like: Tensor,
        compute_dtype: torch.dtype,
    ) -> None:
        self._rank, self._scaling, self._routed, self._dtype = rank, scaling, routed, compute_dtype
        self._weights = weights
        self._shared = SharedExperts(experts, shapes, like.device, compute_dtype)
        values: dict[str, tuple[int, ...]] = {}
        for name, (d_out, d_in) in shapes.items():
            count = len(experts.modules[name].A)
            values |= {f"{name}.A": (rank, d_in), f"{name}.B": (d_out, rank)}
            if routed:
                values |= {f"{name}.V": (count, rank), f"{name}.c": (count,)}
        super().__init__(shapes, values, slots=slots, like=like)
        self._logs: dict[int, Tensor] = {}

    def fill(self, slot: int, user_id: str, *, seed: int) -> None:
        """Start a new user in a slot: seeded A, zero B and V, so that all tokens mix the experts as her weights say."""
        self.clear(slot)
        logs = self._weights[user_id].log().to(self.parameters)
        self._logs[slot] = logs.to(self._dtype)
        with torch.no_grad():
            for name, (_, d_in) in self.shapes.items():
                start = initial_A((self._rank, d_in), seed=seed, key=user_id, module=name)
                self._rows.value(slot, f"{name}.A").copy_(start)
                if self._routed:
                    self._rows.value(slot, f"{name}.c").copy_(logs)

    def clear(self, slot: int) -> None:
        """Zero everything a slot holds."""
        super().clear(slot)
        self._logs.pop(slot, None)

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with the deltas of the population, the mixed experts and the user.

        h = W x + B_p A_p x + sum_e beta_e(x) B_e A_e x + (alpha / r) B_u A_u x
        """
        check_routed(self._stretches, x, module)
        own, weights = [], []
        for part in self._stretches:
            tokens = x[0, part.start : part.stop]
            delta, mixed = user_part(tokens, self._factors(part.slot, module))
            own.append(delta)
            weights.append(mixed)
        shared = self._shared.add(module, x, torch.cat(weights)[None])
        return torch.nn.functional.linear(x, weight, bias) + shared + torch.cat(own)

    def _factors(self, slot: int, module: str) -> UserFactors:
        """Return a user's factors with a graph to their values."""
        A, B = (self._rows.leaf(slot, f"{module}.{name}").to(self._dtype) for name in "AB")
        if self._routed:
            V, c = (self._rows.leaf(slot, f"{module}.{name}").to(self._dtype) for name in "Vc")
        else:
            V, c = A.new_zeros(len(self._logs[slot]), self._rank), self._logs[slot]
        return UserFactors(A, B * self._scaling, V, c)

    def export(self, slot: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return what a slot has trained as named tensors on the CPU, scaling folded into B."""
        named = self._rows.named(self.parameters[slot] if values is None else values)
        return {name: value * self._scaling if name.endswith(".B") else value for name, value in named.items()}
