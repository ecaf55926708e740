"""Merge weights by search on the user's own history."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import MergeConfig
from mta.generation import Request, score_answers
from mta.merging import Match, merge_cat
from mta.packing import TokenRow
from mta.personalize import Resources, match_users, personalize_users
from mta.user_rows import user_rows
from mta.weight_search import SearchConfig, search_weights
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


def cost(base: BaseModel, bank: Bank, match: Match, own: tuple[TokenRow, ...], penalty: float) -> float:
    """The objective, from the formula."""
    adapter = merge_cat([bank.adapter(name) for name in match.anchor_ids], match.weights)
    nats = sum(score_answers(base, [Request(row, adapter)], engine=ENGINE)[0] for row in own)
    return nats / sum(len(row.answer) for row in own) + penalty * sum(map(abs, match.weights))


def test_it_never_ends_worse_than_it_began_and_mostly_better(base: BaseModel, bank: Bank) -> None:
    before, own = matches(bank), rows(base)
    config = SearchConfig(budget=25)
    after = search_weights(base, bank, before, own, merging=MERGE, engine=ENGINE, config=config)
    gains = [
        cost(base, bank, before[name], own[name], config.penalty)
        - cost(base, bank, after[name], own[name], config.penalty)
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
