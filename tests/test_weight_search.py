"""Merge weights by search on the user's own history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import MergeConfig
from mta.merging import Match, merge_cat
from mta.packing import TokenRow
from mta.personalize import Resources, match_users, personalize_users
from mta.seeds import stable_seed
from mta.user_rows import user_rows
from mta.weight_search import SearchConfig, search_weights
from slow_merge import nats_under
from small_world import ADAPT, ENCODER, ENGINE, OWN, PROMPTS, invented_bank, small_targets

MERGE = MergeConfig(weights="search")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


@pytest.fixture(scope="module")
def bank(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return invented_bank(tmp_path_factory.mktemp("bank"), base=base)


def matches(bank: Bank) -> dict[str, Match]:
    names = bank.anchor_ids[:2]
    return {user.user_id: Match(user.user_id, names, (0.6, 0.4), (0.6, 0.4)) for user in small_targets()}


def rows(base: BaseModel) -> dict[str, tuple[TokenRow, ...]]:
    return {u.user_id: user_rows(base.tokens, OWN, u, train=ADAPT, prompts=PROMPTS).rows for u in small_targets()}


def slow_cost(base: BaseModel, bank: Bank, match: Match, own: Sequence[TokenRow], penalty: float) -> float:
    """Nats per answer token under the merged anchors, plus the penalty on the weights."""
    nats = nats_under(base, bank, match.anchor_ids, match.weights, own)
    return nats / sum(len(row.answer) for row in own) + penalty * sum(map(abs, match.weights)) / len(match.weights)


def slow_search(base: BaseModel, bank: Bank, match: Match, own: Sequence[TokenRow], config: SearchConfig) -> Match:
    """The evolution strategy, one candidate at a time."""
    generator = torch.Generator().manual_seed(stable_seed(config.seed, "weights", match.user_id))
    best, lowest, step = match, slow_cost(base, bank, match, own, config.penalty), config.step
    for _ in range(config.budget):
        change = torch.randn(len(best.weights), generator=generator, dtype=torch.float64).tolist()
        moved = [weight + step * by for weight, by in zip(best.weights, change, strict=True)]
        tried = replace(best, weights=tuple(min(max(weight, -config.limit), config.limit) for weight in moved))
        found = slow_cost(base, bank, tried, own, config.penalty)
        if found < lowest:
            best, lowest, step = tried, found, 1.5 * step
        else:
            step /= 1.5**0.25
    return best


def test_it_is_the_strategy_tried_one_candidate_at_a_time(base: BaseModel, bank: Bank) -> None:
    before, own = matches(bank), rows(base)
    config = SearchConfig(budget=8, seed=3)
    after = search_weights(base, bank, before, own, merging=MERGE, engine=ENGINE, config=config)
    for name, match in after.items():
        assert match.weights == pytest.approx(slow_search(base, bank, before[name], own[name], config).weights)
    others = search_weights(base, bank, before, own, merging=MERGE, engine=ENGINE, config=replace(config, seed=4))
    assert {m.weights for m in others.values()}.isdisjoint(m.weights for m in after.values())


def test_it_never_ends_worse_than_it_began_and_mostly_better(base: BaseModel, bank: Bank) -> None:
    before, own = matches(bank), rows(base)
    config = SearchConfig(budget=25)
    after = search_weights(base, bank, before, own, merging=MERGE, engine=ENGINE, config=config)
    gains = [
        slow_cost(base, bank, before[name], own[name], config.penalty)
        - slow_cost(base, bank, after[name], own[name], config.penalty)
        for name in before
    ]
    assert min(gains) > -1e-5
    assert max(gains) > 1e-3
    for name, match in after.items():
        assert match.anchor_ids == before[name].anchor_ids
        assert max(map(abs, match.weights)) <= config.limit


def test_a_user_gets_the_same_weights_in_any_company(base: BaseModel, bank: Bank) -> None:
    own = rows(base)
    together = search_weights(base, bank, matches(bank), own, merging=MERGE, engine=ENGINE)
    for name, match in matches(bank).items():
        alone = search_weights(base, bank, {name: match}, own, merging=MERGE, engine=ENGINE)
        assert alone[name].weights == pytest.approx(together[name].weights)


def test_no_budget_and_no_examples_leave_the_weights(base: BaseModel, bank: Bank) -> None:
    before = matches(bank)
    none = search_weights(base, bank, before, rows(base), merging=MERGE, engine=ENGINE, config=SearchConfig(budget=0))
    assert none == before
    assert search_weights(base, bank, before, {}, merging=MERGE, engine=ENGINE) == before


def test_the_merge_uses_what_was_found(base: BaseModel, bank: Bank, tmp_path: Path) -> None:
    have = Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=tmp_path, bank=bank, encoder=ENCODER, engine=ENGINE,
        merge=MERGE,
    )  # fmt: skip
    users = small_targets()
    found = match_users(users, have)
    people = personalize_users(users, have, adapted=False).users
    for user in users:
        match, recipe = found[user.user_id], people[user.user_id].adapter
        assert recipe is not None
        wanted = merge_cat([bank.adapter(name) for name in match.anchor_ids], match.weights)
        assert recipe.make().fingerprint() == wanted.fingerprint()
        assert sum(match.weights) != pytest.approx(1.0, abs=1e-9)
