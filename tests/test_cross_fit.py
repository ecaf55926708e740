"""Held-out items of users: nothing that is asked was learned or shown; costs are those of trainings alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import BY_HISTORY, MergeConfig
from mta.cross_fit import held_out_nats
from mta.errors import ConfigError
from mta.lora.adapter import AdapterSum
from mta.personalize import Resources, match_users, merged_recipe
from mta.records import User
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import UserRows, fold_rows, user_rows
from slow_merge import nats_under
from small_world import ADAPT, ENCODER, ENGINE, OWN, PROMPTS, invented_bank, person, small_targets

SLOW_FOLDS = 2


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


@pytest.fixture(scope="module")
def bank(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return invented_bank(tmp_path_factory.mktemp("bank"), base=base)


@pytest.fixture
def have(base: BaseModel, bank: Bank, tmp_path: Path) -> Resources:
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=tmp_path, bank=bank, encoder=ENCODER, engine=ENGINE
    )


def test_every_item_is_held_out_once_and_neither_learned_nor_shown_then(base: BaseModel) -> None:
    user = person("ann", items=7, topic=0)
    made = fold_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS, folds=3)
    whole = user_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS)
    assert [len(rows.held_out) for rows in made] == [3, 2, 2]
    assert all(len(rows.rows) + len(rows.held_out) == 7 for rows in made)
    answers = [row.answer for rows in made for row in rows.held_out]
    assert sorted(answers) == sorted(row.answer for row in whole.rows)
    for rows in made:
        learned = [base.tokens.decode(row.prompt) for row in rows.rows]
        for row in rows.held_out:
            text = base.tokens.decode(row.answer).strip()
            assert not any(text in prompt for prompt in learned), "the item is not shown beside another either"


def test_folds_depend_on_the_user_alone_and_two_items_are_the_fewest(base: BaseModel) -> None:
    def folds(items: int, asked: int) -> int:
        user = person("bob", items=items, topic=1)
        return len(fold_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS, folds=asked))

    assert [folds(1, 3), folds(2, 3), folds(5, 3)] == [0, 2, 3]
    few = replace(ADAPT, max_items=2)
    made = fold_rows(base.tokens, OWN, person("bob", items=5, topic=1), train=few, prompts=PROMPTS, folds=3)
    assert [len(rows.rows) + len(rows.held_out) for rows in made] == [2, 2], "capped as in training"


def slow(user: User, base: BaseModel, bank: Bank, have: Resources) -> dict[str, float]:
    """Each fold trained alone; likelihoods in copies of the model with the adapters in their weights."""
    match = match_users([user], have)[user.user_id]
    beneath = merged_recipe(match, bank, have.merge)
    nats = {"base": 0.0, "merged-only": 0.0, "mta": 0.0}
    for fold, rows in enumerate(fold_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS, folds=SLOW_FOLDS)):
        nats["base"] += nats_under(base, bank, [], [], rows.held_out)
        nats["merged-only"] += nats_under(base, bank, match.anchor_ids, match.weights, rows.held_out)
        job = TrainJob(f"{user.user_id} without {fold}", rows.rows, ADAPT, frozen=beneath, init_key=user.user_id)
        (done,) = train(base, [job], engine=ENGINE)
        with_own = replace(bank, adapters={**bank.adapters, "own": done.adapter})
        nats["mta"] += nats_under(base, with_own, [*match.anchor_ids, "own"], [*match.weights, 1.0], rows.held_out)
    return nats


def test_costs_are_those_of_folds_trained_one_by_one(base: BaseModel, bank: Bank, have: Resources) -> None:
    users = [*small_targets(), person("one", items=1, topic=0)]
    merged = {name: merged_recipe(match, bank, have.merge) for name, match in match_users(users, have).items()}
    found, seconds = held_out_nats(
        users, have, {"base": {}, "merged-only": merged}, adapted={"mta": merged}, folds=SLOW_FOLDS
    )
    assert seconds > 0
    assert set(found) == {"ann", "bob", "cy"}, "on one item nothing can be judged"
    for user in small_targets():
        assert found[user.user_id] == pytest.approx(slow(user, base, bank, have), rel=1e-4)
    again, _ = held_out_nats(
        users[:1], have, {"base": {}, "merged-only": merged}, adapted={"mta": merged}, folds=SLOW_FOLDS
    )
    assert again["ann"] == pytest.approx(found["ann"], rel=1e-5), "whoever else is there"


def test_a_fold_whose_training_diverges_is_served_by_what_lies_beneath(bank: Bank, have: Resources) -> None:
    users = small_targets()[:1]
    merged = {name: merged_recipe(match, bank, have.merge) for name, match in match_users(users, have).items()}
    wild = replace(have, adapt=replace(ADAPT, lr=1e30, clip_norm=0.0))
    found, _ = held_out_nats(users, wild, {"merged-only": merged}, adapted={"mta": merged}, folds=2)
    assert isinstance(merged["ann"].parts(), AdapterSum)
    assert found["ann"]["mta"] == pytest.approx(found["ann"]["merged-only"], rel=1e-6)


def test_items_that_leave_nothing_to_learn_are_judged_by_what_lies_beneath(
    bank: Bank, have: Resources, monkeypatch
) -> None:
    """As on LaMP-1, where one paper alone makes no question."""
    users = small_targets()[:1]
    merged = {name: merged_recipe(match, bank, have.merge) for name, match in match_users(users, have).items()}
    wanted, _ = held_out_nats(users, have, {"merged-only": merged}, adapted={}, folds=2)

    def nothing_to_learn(*args, **more) -> list[UserRows]:
        return [replace(rows, rows=()) for rows in fold_rows(*args, **more)]

    monkeypatch.setattr("mta.cross_fit.fold_rows", nothing_to_learn)
    found, seconds = held_out_nats(users, have, {}, adapted={"mta": merged}, folds=2)
    assert found["ann"]["mta"] == pytest.approx(wanted["ann"]["merged-only"], rel=1e-6)
    assert seconds == 0


@pytest.mark.parametrize("weights", BY_HISTORY)
def test_weights_chosen_on_the_same_items_are_refused(have: Resources, weights: str) -> None:
    asked = replace(have, merge=MergeConfig(weights=weights))
    with pytest.raises(ConfigError, match="none is left to judge by"):
        held_out_nats(small_targets(), asked, {"base": {}}, adapted={})


def test_early_stopping_plays_no_part_and_that_is_said(bank: Bank, have: Resources, caplog) -> None:
    users = small_targets()[1:2]
    merged = {name: merged_recipe(match, bank, have.merge) for name, match in match_users(users, have).items()}
    stopping = replace(have, adapt=replace(ADAPT, held_out_share=0.4), folder=have.folder / "stopping")
    found, _ = held_out_nats(users, stopping, {}, adapted={"mta": merged}, folds=2)
    plain, _ = held_out_nats(users, have, {}, adapted={"mta": merged}, folds=2)
    assert found == plain
    assert "judged without early stopping" in caplog.text
