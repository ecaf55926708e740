"""Merge weights by evidence: the posterior of each anchor given the user's own history."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import MergeConfig
from mta.errors import ConfigError
from mta.evidence import weigh_by_evidence
from mta.merging import Match, posterior_weights
from mta.packing import TokenRow
from mta.personalize import Resources, match_users, merged_recipe, personalize_users
from mta.user_rows import user_rows
from slow_merge import nats_under
from small_world import ADAPT, ENCODER, ENGINE, OWN, PROMPTS, invented_bank, small_targets

TEMPERATURE = 3.0
MERGE = MergeConfig(weights="evidence", evidence_temperature=TEMPERATURE)
WITH_NOBODY = MergeConfig(weights="evidence", evidence_temperature=TEMPERATURE, nobody=True)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "over a population adapter"])
def bank(base: BaseModel, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bank:
    return invented_bank(tmp_path_factory.mktemp("bank"), base=base, population=request.param)


def matches(bank: Bank) -> dict[str, Match]:
    """The first user has two anchors, the others all three, with uneven weights."""
    found = {}
    for place, user in enumerate(small_targets()):
        names, weights = (bank.anchor_ids[:2], (0.7, 0.3)) if place == 0 else (bank.anchor_ids, (0.5, 0.3, 0.2))
        found[user.user_id] = Match(user.user_id, names, weights, weights)
    return found


def rows(base: BaseModel) -> dict[str, tuple[TokenRow, ...]]:
    return {u.user_id: user_rows(base.tokens, OWN, u, train=ADAPT, prompts=PROMPTS).rows for u in small_targets()}


@pytest.mark.parametrize("merging", [MERGE, WITH_NOBODY], ids=["anchors", "anchors and nobody"])
def test_weights_are_the_posterior_by_bayes_rule(base: BaseModel, bank: Bank, merging: MergeConfig) -> None:
    before, own = matches(bank), rows(base)
    after = weigh_by_evidence(base, bank, before, own, merging=merging, engine=ENGINE)
    for name, match in before.items():
        joint = [
            weight * math.exp(-nats_under(base, bank, [anchor], [1.0], own[name]) / TEMPERATURE)
            for anchor, weight in zip(match.anchor_ids, match.weights, strict=True)
        ]
        total = sum(joint)
        if merging.nobody:
            mean = sum(match.weights) / len(match.weights)
            total += mean * math.exp(-nats_under(base, bank, [], [], own[name]) / TEMPERATURE)
        assert after[name].anchor_ids == match.anchor_ids
        assert after[name].weights == pytest.approx([one / total for one in joint], abs=1e-4)
        assert (
            sum(after[name].weights) == pytest.approx(1.0, abs=1e-3)
            if not merging.nobody
            else sum(after[name].weights) < 1
        )


def test_a_user_gets_the_same_weights_in_any_company(base: BaseModel, bank: Bank) -> None:
    own = rows(base)
    together = weigh_by_evidence(base, bank, matches(bank), own, merging=WITH_NOBODY, engine=ENGINE)
    for name, match in matches(bank).items():
        alone = weigh_by_evidence(base, bank, {name: match}, own, merging=WITH_NOBODY, engine=ENGINE)
        assert alone == {name: together[name]}
        recipes = [merged_recipe(found[name], bank, WITH_NOBODY) for found in (alone, together)]
        assert recipes[0].fingerprint == recipes[1].fingerprint, "so that finished adapters over it are found again"


def test_without_examples_the_prior_stays(base: BaseModel, bank: Bank) -> None:
    assert weigh_by_evidence(base, bank, matches(bank), {}, merging=WITH_NOBODY, engine=ENGINE) == matches(bank)


def test_temperature_and_prior_decide_as_bayes_rule_says() -> None:
    prior, nats = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.tensor([2.0, 2.0 + math.log(3)])
    assert posterior_weights(prior, nats, temperature=1.0).tolist() == pytest.approx([0.5, 0.5])
    assert posterior_weights(prior, nats, temperature=1e9).tolist() == pytest.approx([0.25, 0.75])
    assert posterior_weights(prior, nats, temperature=1e-3).tolist() == pytest.approx([1.0, 0.0])
    no_anchor_fits = posterior_weights(prior, nats + 1000, temperature=1.0, nobody=2.0)
    assert no_anchor_fits.sum() < 1e-12, "what nobody's adapter gets falls away"
    assert posterior_weights(prior, nats, temperature=1.0, nobody=1e9).tolist() == pytest.approx([0.5, 0.5])
    certain = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert posterior_weights(certain, nats, temperature=1.0).tolist() == [0.0, 1.0], "a prior of 0 stays 0"


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="evidence_temperature is 0"):
        MergeConfig(evidence_temperature=0.0)


@pytest.mark.parametrize("mode", ["cat", "linear"])
def test_a_merge_with_half_the_weight_is_half_the_merge(base: BaseModel, bank: Bank, mode: str) -> None:
    """Over what lies beneath, which keeps its own; factors mixed one by one must not shrink twice."""
    names = bank.anchor_ids[:2]
    whole = bank.merged(names, (0.6, 0.4), replace(WITH_NOBODY, mode=mode)).whole()
    half = bank.merged(names, (0.3, 0.2), replace(WITH_NOBODY, mode=mode)).whole()
    for module in whole.modules:
        beneath = bank.population.delta(module) if bank.population else 0.0
        assert torch.allclose(half.delta(module) - beneath, 0.5 * (whole.delta(module) - beneath), atol=1e-6)


def test_users_are_matched_with_weights_by_their_own_history(base: BaseModel, bank: Bank, tmp_path: Path) -> None:
    have = Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=tmp_path, bank=bank, encoder=ENCODER, engine=ENGINE
    )
    users = small_targets()
    before = match_users(users, have)
    after = match_users(users, replace(have, merge=WITH_NOBODY))
    assert after == weigh_by_evidence(base, bank, before, rows(base), merging=WITH_NOBODY, engine=ENGINE)


def test_compact_forms_want_the_whole_merge(base: BaseModel, bank: Bank, tmp_path: Path) -> None:
    have = Resources(
        base=base,
        task=OWN,
        prompts=PROMPTS,
        adapt=replace(ADAPT, form="core"),
        folder=tmp_path,
        bank=bank,
        encoder=ENCODER,
        engine=ENGINE,
        merge=WITH_NOBODY,
    )
    with pytest.raises(ConfigError, match="leave --nobody out"):
        personalize_users(small_targets(), have)
