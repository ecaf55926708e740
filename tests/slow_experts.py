"""Routed experts written as plainly as can be: one token, one expert, one product at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers import random_adapter
from mta.base_model import BaseModel
from mta.baselines.proper import FEED_FORWARD
from mta.lora.experts import ExpertFactors, Experts, RoutedUser, UserFactors
from mta.packing import TokenRow

Delta = Callable[[Tensor], Tensor]
"""What is added to a layer's output for one token's input."""


class SlowLinear(nn.Module):
    """A linear layer and what is added to it, token by token."""

    def __init__(self, linear: nn.Linear, delta: Delta) -> None:
        super().__init__()
        self.linear, self.delta = linear, delta

    def forward(self, x: Tensor) -> Tensor:
        tokens = [self.linear(token) + self.delta(token) for token in x.flatten(0, -2)]
        return torch.stack(tokens).view(*x.shape[:-1], -1)


def slow_model(base: BaseModel, deltas: Mapping[str, Delta]) -> Any:
    """Copy the model and add the deltas to its layers."""
    model = copy.deepcopy(base.model)
    for name, delta in deltas.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, SlowLinear(model.get_submodule(name), delta))
    return model


def softmax(values: Sequence[Tensor]) -> list[Tensor]:
    powers = [torch.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def slow_experts(experts: Experts, module: str, x: Tensor, weights: Sequence[Tensor | float]) -> Tensor:
    """W x is left out: the population, and the experts one by one."""
    population, found = experts.population.modules[module], experts.modules[module]
    total = population.B @ (population.A @ x)
    for index, weight in enumerate(weights):
        total = total + weight * (found.B[:, index] @ (found.A[index] @ x))
    return total


def slow_user(user: RoutedUser) -> dict[str, Delta]:
    """Return what one user has on each module."""

    def of(module: str) -> Delta:
        own = user.own.get(module)

        def delta(x: Tensor) -> Tensor:
            if own is None:
                return slow_experts(user.experts, module, x, user.weights.tolist())
            seen = own.A @ x
            weights = softmax([row @ seen + offset for row, offset in zip(own.V, own.c, strict=True)])
            return slow_experts(user.experts, module, x, weights) + own.B @ seen

        return delta

    return {module: of(module) for module in user.modules}


def slow_nll(model: Any, row: TokenRow) -> Tensor:
    """Sum over the answer of -log p, from the logits of the whole row."""
    ids = torch.tensor([row.prompt + row.answer])
    logs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    first = len(row.prompt)
    return -sum((logs[first - 1 + place, token] for place, token in enumerate(row.answer)), torch.zeros(()).double())


def slow_greedy(model: Any, prompt: Sequence[int], count: int, end_ids: Sequence[int]) -> list[int]:
    """The likeliest tokens, each from a forward pass over everything before it."""
    ids = list(prompt)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


# things to route ----------------------------------------------------------------------------------------------------


def random_experts(base: BaseModel, *, seed: int = 0, count: int = 3, rank: int = 2, size: float = 0.2) -> Experts:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(base.dtype) * size

    modules = {
        name: ExpertFactors(draw(count, rank, d_in), draw(d_out, count, rank))
        for name, (d_out, d_in) in base.shapes(FEED_FORWARD).items()
    }
    return Experts(random_adapter(base, FEED_FORWARD, seed=seed + 1, rank=3), modules, f"experts {seed}")


def random_user(experts: Experts, *, seed: int, rank: int = 2, size: float = 0.4) -> RoutedUser:
    """A user with a router that looks at the token; of rank 0, one with weights alone."""
    generator = torch.Generator().manual_seed(1000 + seed)
    like = next(iter(experts.population.modules.values())).A

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like) * size

    weights = torch.softmax(3 * draw(count_of(experts)), dim=0)
    if not rank:
        return RoutedUser(experts, weights, {})
    own = {}
    for name, factors in experts.modules.items():
        d_in, d_out, count = factors.A.shape[2], len(factors.B), count_of(experts)
        V = draw(count, rank) * 5 / math.sqrt(d_in)
        own[name] = UserFactors(draw(rank, d_in), draw(d_out, rank), V, draw(count))
    return RoutedUser(experts, weights, own)


def count_of(experts: Experts) -> int:
    return len(next(iter(experts.modules.values())).A)
