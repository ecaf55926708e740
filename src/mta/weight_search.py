"""Merge weights found by search: those under which the merged anchors explain the user's own history best.

An alternative to Eq. 6 in the manner of LoraHub and PriME: no gradients, a few forward passes over the user's own
leave-one-out examples, weights that may be negative and need not sum to 1. The search is a (1+1) evolution strategy
that starts from the weights of Eq. 6 and ends with none that cost more: loss on the user's history plus a penalty on
their size. Queries play no part. Users are searched in shared batches; draws depend on the user's id alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import EngineConfig, MergeConfig
from mta.generation import Request, score_answers
from mta.merging import Match
from mta.packing import TokenRow
from mta.progress import Progress, silent
from mta.seeds import stable_seed

USERS_PER_CHUNK = 16
"""Users whose merged adapters are held in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How far and how long the search goes."""

    budget: int = 12
    """Candidates tried, the start not counted (PriME tries 10)."""
    limit: float = 1.5
    """Largest size of a weight (PriME)."""
    penalty: float = 0.05
    """Nats per answer token that a mean of |w| of 1 costs (LoraHub)."""
    step: float = 0.3
    """Standard deviation of the first changes; grows after a success, shrinks after a failure."""
    seed: int = 0


@dataclass(slots=True)
class _Search:
    """One user's search."""

    match: Match
    rows: Sequence[TokenRow]
    generator: torch.Generator
    step: float
    weights: Tensor
    """(K,) the best so far"""
    cost: float | None = None
    """What they cost; None before they are judged."""

    def candidate(self, limit: float) -> Tensor:
        change = torch.randn(len(self.weights), generator=self.generator, dtype=torch.float64)
        return (self.weights + self.step * change).clamp(-limit, limit)

    def judge(self, weights: Tensor, cost: float) -> None:
        """Keep a better candidate; the step follows the one-fifth rule (Rechenberg 1973)."""
        if self.cost is None:  # the start is no success
            self.cost = cost
        elif cost < self.cost:
            self.weights, self.cost = weights, cost
            self.step *= 1.5
        else:
            self.step *= 1.5**-0.25


def search_weights(
    base: BaseModel,
    bank: Bank,
    matches: Mapping[str, Match],
    rows: Mapping[str, Sequence[TokenRow]],
    *,
    merging: MergeConfig,
    engine: EngineConfig,
    config: SearchConfig | None = None,
    progress: Progress = silent,
) -> dict[str, Match]:
    """Find every user's merge weights on the user's own examples.

    Args:
        base: the frozen model.
        bank: its anchors.
        matches: user id -> the anchors to weigh, with the weights to start from.
        rows: user id -> the user's own examples; a user without any keeps the weights.
        merging: how candidates are merged.
        engine: packing.
        config: length and width of the search.
        progress: told about the stage.
    """
    config = config or SearchConfig()
    names = [name for name in matches if rows.get(name)]
    found = dict(matches)
    with progress("weight search") as step:
        for start in range(0, len(names), USERS_PER_CHUNK):
            chunk = names[start : start + USERS_PER_CHUNK]
            searches = [_begin(matches[name], rows[name], config) for name in chunk]
            for tried in range(config.budget + 1):
                weights = [search.candidate(config.limit) if tried else search.weights for search in searches]
                costs = _costs(base, bank, searches, weights, merging, engine, config.penalty)
                for search, candidate, cost in zip(searches, weights, costs, strict=True):
                    search.judge(candidate, cost)
            for search in searches:
                found[search.match.user_id] = replace(search.match, weights=tuple(search.weights.tolist()))
            step(start + len(chunk), len(names))
    return found


def _begin(match: Match, rows: Sequence[TokenRow], config: SearchConfig) -> _Search:
    generator = torch.Generator().manual_seed(stable_seed(config.seed, "weights", match.user_id))
    return _Search(match, rows, generator, config.step, torch.tensor(match.weights, dtype=torch.float64))


def _costs(
    base: BaseModel,
    bank: Bank,
    searches: Sequence[_Search],
    weights: Sequence[Tensor],
    merging: MergeConfig,
    engine: EngineConfig,
    penalty: float,
) -> list[float]:
    """Return each user's loss per answer token under the candidate weights, plus the penalty on their size."""
    requests = [
        Request(row, adapter)
        for search, candidate in zip(searches, weights, strict=True)
        for adapter in [bank.merged(search.match.anchor_ids, candidate.tolist(), merging)]
        for row in search.rows
    ]
    losses = iter(score_answers(base, requests, engine=engine))
    costs = []
    for search, candidate in zip(searches, weights, strict=True):
        nats = sum(next(losses) for _ in search.rows)
        tokens = sum(len(row.answer) for row in search.rows)
        costs.append(nats / tokens + penalty * float(candidate.abs().mean()))
    return costs
