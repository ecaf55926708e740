"""One adapter for everybody: the bank's data, as many tokens as the bank had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import random_rows, tiny_base
from mta.adapter_files import load_adapter
from mta.bank import Bank, retire_anchor
from mta.bank_building import build_bank
from mta.base_model import BaseModel
from mta.baselines.methods import METHODS, find_method
from mta.baselines.population import population, same_tokens
from mta.config import BankConfig, TrainConfig
from mta.errors import AdapterError, BankError, ConfigError, DataError, NotFound
from mta.lora.adapter import cat
from mta.packing import TokenRow
from mta.personalize import Personalized, Resources
from mta.training import train
from mta.training_plan import TrainJob, total_updates, update_examples
from mta.user_rows import user_rows
from small_world import ADAPT, BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, TRAIN, Heard, small_pool, small_targets


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def resources(base: BaseModel, folder: Path, config: BankConfig = BANK) -> Resources:
    bank = build_bank(small_pool(), OWN, base, folder / "bank", config=config, encoders=ENCODERS, engine=ENGINE)
    return have(base, bank, folder)


def have(base: BaseModel, bank: Bank | None, folder: Path) -> Resources:
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, bank=bank, pool=small_pool(),
        encoder=ENCODER, engine=ENGINE,
    )  # fmt: skip


def anchor_rows(base: BaseModel, names: tuple[str, ...]) -> list[TokenRow]:
    pool = {user.user_id: user for user in small_pool()}
    return [row for name in names for row in user_rows(base.tokens, OWN, pool[name], train=TRAIN, prompts=PROMPTS).rows]


# tokens -----------------------------------------------------------------------------------------------------------


def seen(rows: list[TokenRow], config: TrainConfig) -> int:
    """Tokens that a training really takes, update by update."""
    updates = range(total_updates(len(rows), config))
    chosen = [index for k in updates for index in update_examples(len(rows), config, job_id="population", step=k)]
    return sum(len(rows[index]) for index in chosen)


@given(
    count=st.integers(1, 25),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    share=st.floats(0.3, 12),
    epochs=st.integers(1, 4),
)
def test_planned_tokens_are_the_wanted_ones_up_to_one_and_a_half_updates(
    count: int, batch_size: int, drop_last: bool, share: float, epochs: int
) -> None:
    rows = [TokenRow(tuple(range(3, 20)), (5, 1))] * count  # equal lengths: what is left is rounding to whole updates
    wanted = round(share * sum(map(len, rows)))
    config = same_tokens(TrainConfig(batch_size=batch_size, drop_last=drop_last, epochs=epochs), rows, wanted)
    one_update = 19 * min(batch_size, count)
    assert abs(seen(rows, config) - wanted) <= 1.5 * one_update  # half of one, and an epoch's last may be a short one
    assert total_updates(count, config) >= 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_planned_tokens_of_unequal_rows_are_within_a_tenth(drop_last: bool) -> None:
    rows = list(random_rows(3, 40))
    for share in (1.0, 1.5, 2.6, 7.0):
        wanted = round(share * sum(map(len, rows)))
        config = same_tokens(TrainConfig(batch_size=3, drop_last=drop_last), rows, wanted)
        assert seen(rows, config) == pytest.approx(wanted, rel=0.1)


CONFIGS = {
    "plain": BANK,
    "early stopping": replace(BANK, train=replace(TRAIN, held_out_share=0.3, epochs=9, lr=0.1)),
    "at least": replace(BANK, train=replace(TRAIN, epochs=1, min_updates=8)),
    "at most": replace(BANK, train=replace(TRAIN, epochs=9, max_updates=6)),
    "last dropped": replace(BANK, train=replace(TRAIN, batch_size=3, drop_last=True, epochs=5)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_sees_as_many_tokens_as_all_anchors_together(base, tmp_path, name: str) -> None:
    known = resources(base, tmp_path, CONFIGS[name])
    population(small_targets(), known)
    _, note = load_adapter(tmp_path / "population" / "population.safetensors", base=base)
    anchors = sum(anchor.tokens for anchor in known.need_bank().anchors)
    assert note["tokens"] == pytest.approx(anchors, rel=0.1)


# one for everybody ------------------------------------------------------------------------------------------------


def test_everybody_gets_the_one_adapter_trained_on_all_anchors_rows(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    bank = known.need_bank()
    found = population(small_targets(), known)
    assert list(found.users) == ["ann", "bob", "cy"]
    assert (found.train_seconds, found.shared_seconds > 0) == (0.0, True)
    over = METHODS["population-adapt"](small_targets(), known)
    assert over.shared_seconds == found.shared_seconds
    assert over.train_seconds > 0
    rows = anchor_rows(base, bank.anchor_ids)
    assert len(rows) == sum(anchor.examples for anchor in bank.anchors)
    tokens = sum(anchor.tokens for anchor in bank.anchors)
    job = TrainJob("population", tuple(rows), same_tokens(TRAIN, rows, tokens))
    (wanted,) = train(base, [job], engine=ENGINE)
    for one in found.users.values():
        made = adapter_of(one)
        assert made.fingerprint() == wanted.adapter.fingerprint()
        assert (one.updates, one.adapter_bytes, one.match) == (0, 0, None), "nothing is made or kept for one user"
    assert len({one.adapter.fingerprint for one in found.users.values() if one.adapter}) == 1


def adapter_of(one: Personalized):
    assert one.adapter is not None
    made = one.adapter.make()
    assert made.rank == one.adapter.rank == TRAIN.rank
    return made


def test_it_trains_with_the_population_settings_on_the_anchors_rows(base, tmp_path) -> None:
    """What suits one person's few items need not suit everybody's; which items are learned is the bank's business."""
    own = replace(TRAIN, rank=1, batch_size=5, max_items=1)
    known = resources(base, tmp_path, replace(BANK, population_train=own))
    found = population(small_targets(), known)
    assert found.users["ann"].adapter is not None
    assert found.users["ann"].adapter.rank == 1 != TRAIN.rank
    rows = anchor_rows(base, known.need_bank().anchor_ids)
    tokens = sum(anchor.tokens for anchor in known.need_bank().anchors)
    (wanted,) = train(base, [TrainJob("population", tuple(rows), same_tokens(own, rows, tokens))], engine=ENGINE)
    assert found.users["ann"].adapter.make().fingerprint() == wanted.adapter.fingerprint()


def test_held_out_items_of_the_bank_are_learned_here(base, tmp_path) -> None:
    """The bank keeps some back for early stopping; a fair rival has the anchors' whole data."""
    known = resources(base, tmp_path, replace(BANK, train=replace(TRAIN, held_out_share=0.4)))
    heard = Heard()
    population(small_targets(), replace(known, progress=heard))
    bank = known.need_bank()
    rows = anchor_rows(base, bank.anchor_ids)
    assert len(rows) > sum(anchor.examples for anchor in bank.anchors)
    tokens = sum(anchor.tokens for anchor in bank.anchors)
    (planned,) = {total for stage, _, total in heard.steps if stage == "population training"}
    assert planned == total_updates(len(rows), same_tokens(TRAIN, rows, tokens))


def test_over_a_bank_with_an_adapter_beneath_it_has_the_whole_pool_and_the_tokens_of_both(base, tmp_path) -> None:
    wide = replace(TRAIN, batch_size=3, epochs=2, seed=5)
    known = resources(base, tmp_path, replace(BANK, population_beneath=True, population_train=wide))
    found = population(small_targets(), known)
    anchors = known.need_bank().anchors
    rows = anchor_rows(base, tuple(user.user_id for user in small_pool()))
    assert len(rows) > sum(anchor.examples for anchor in anchors)
    tokens = seen(rows, wide) + sum(anchor.tokens for anchor in anchors)
    job = TrainJob("population", tuple(rows), same_tokens(wide, rows, tokens))
    (wanted,) = train(base, [job], engine=ENGINE)
    assert adapter_of(found.users["ann"]).fingerprint() == wanted.adapter.fingerprint()
    METHODS["population-matched-adapt"](small_targets(), known)
    _, matched = load_adapter(tmp_path / "population-matched" / "population.safetensors", base=base)
    one = sum(anchor.updates for anchor in anchors) / len(anchors)
    assert matched["updates"] == pytest.approx(total_updates(len(rows), wide) + one, abs=1)
    assert matched["tokens"] == pytest.approx(tokens, rel=0.1)


def test_retired_anchors_are_left_out(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    before = adapter_of(population(small_targets(), known).users["ann"]).fingerprint()
    left = retire_anchor(known.need_bank(), "p3")
    after = population(small_targets(), replace(known, bank=left))
    tokens = sum(anchor.tokens for anchor in left.anchors if not anchor.retired)
    assert sorted(left.anchor_ids) == ["p1", "p5"]
    rows = anchor_rows(base, left.anchor_ids)
    (wanted,) = train(base, [TrainJob("population", tuple(rows), same_tokens(TRAIN, rows, tokens))], engine=ENGINE)
    assert adapter_of(after.users["ann"]).fingerprint() == wanted.adapter.fingerprint() != before


def test_a_second_call_trains_nothing(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    first = population(small_targets(), known)
    heard = Heard()
    second = population(small_targets(), replace(known, progress=heard))
    assert heard.steps == []
    assert second.shared_seconds == first.shared_seconds


def test_a_population_that_diverged_is_an_error(base, tmp_path) -> None:
    """Neither the control nor what lies beneath the anchors may be an adapter of which nobody knows how good it is."""
    wild = replace(BANK, population_train=replace(TRAIN, lr=1e30))
    known = resources(base, tmp_path, wild)
    for _ in range(2):  # a second call finds the adapter on disk, and it is no better
        with pytest.raises(
            AdapterError, match=r"population adapter diverged after \d+ updates at learning rate 1e\+30"
        ):
            population(small_targets(), known)
    with pytest.raises(AdapterError, match="population adapter diverged"):
        resources(base, tmp_path / "beneath", replace(wild, population_beneath=True))
    assert not (tmp_path / "beneath" / "bank" / "bank.json").exists()


def test_cut_examples_are_counted(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    found = population(small_targets(), replace(known, prompts=replace(PROMPTS, max_tokens=70)))
    assert found.cut_rows == sum(anchor.examples for anchor in known.need_bank().anchors)
    assert population(small_targets(), known).cut_rows == 0


def test_a_pool_without_the_anchors_is_refused(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    missing = [user for user in small_pool() if user.user_id != "p3"]
    with pytest.raises(DataError, match=r"1 of 3 anchors are not in the pool \(first: 'p3'\)"):
        population(small_targets(), replace(known, pool=missing))
    with pytest.raises(BankError, match="no bank was given"):
        population(small_targets(), have(base, None, tmp_path))


def test_methods_are_found_by_name() -> None:
    assert all(find_method(name) is METHODS[name] for name in METHODS)
    with pytest.raises(NotFound, match=r"unknown method 'MTA'; known: .*mta"):
        find_method("MTA")


# adapted over it ---------------------------------------------------------------------------------------------------


def test_users_are_adapted_over_the_one_adapter(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    people = METHODS["population-adapt"](small_targets(), known)
    shared, _ = load_adapter(tmp_path / "population" / "population.safetensors", base=base)
    for name, one in people.users.items():
        own, _ = load_adapter(tmp_path / "population-adapt" / f"{name}.safetensors", base=base)
        assert one.adapter is not None
        assert one.adapter.make().fingerprint() == cat([shared, own]).fingerprint()
        merged = METHODS["mta"](small_targets(), known).users[name]
        assert one.updates == merged.updates, "as many updates on the user's own examples as merge-then-adapt"
        assert one.adapter_bytes == merged.adapter_bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_the_matched_one_has_an_anchors_updates_and_all_anchors_tokens(base, tmp_path, name: str) -> None:
    known = resources(base, tmp_path, CONFIGS[name])
    METHODS["population-matched-adapt"](small_targets(), known)
    _, note = load_adapter(tmp_path / "population-matched" / "population.safetensors", base=base)
    anchors = known.need_bank().anchors
    assert note["tokens"] == pytest.approx(sum(anchor.tokens for anchor in anchors), rel=0.15)
    assert note["updates"] == pytest.approx(sum(anchor.updates for anchor in anchors) / len(anchors), abs=2)


def test_layers_that_do_not_fit_are_refused_before_training(base, tmp_path) -> None:
    known = resources(base, tmp_path)
    narrow = replace(known, adapt=replace(ADAPT, target_modules=("q_proj",)))
    for name in ("population-adapt", "population-matched-adapt"):
        with pytest.raises(ConfigError, match="changes v_proj, but theirs change q_proj only"):
            METHODS[name](small_targets(), narrow)
    assert {path.name for path in tmp_path.iterdir()} == {"bank"}
