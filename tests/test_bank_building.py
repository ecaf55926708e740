"""Stage 1: which anchors, what they start from and learn, and what a second call reuses."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank import ADAPTERS, MANIFEST, Bank, history_fingerprint, load_bank, retire_anchor
from mta.bank_building import build_bank
from mta.bank_plan import SHARED_INIT
from mta.base_model import BaseModel
from mta.config import ALL_LINEAR, BankConfig, MergeConfig
from mta.encoders import document_vectors
from mta.errors import BankError, ConfigError, DataError
from mta.files import read_json
from mta.judges import draw_judges
from mta.lora.adapter import Adapter, distance, recipe
from mta.lora.stacked import initial_A
from mta.merging import Match, merge_cat, merge_linear
from mta.personalize import merged_recipe
from mta.records import HistoryItem, Query, User
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows
from small_world import BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, TRAIN, Heard, person, same_bank, small_pool

STILL = replace(TRAIN, lr=1e-300, epochs=1)
"""A learning rate that float32 rounds to zero: what was started from is what comes out."""


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def build(folder: Path, base: BaseModel, config: BankConfig = BANK, *, pool: list[User] | None = None, **more) -> Bank:
    more = {"engine": ENGINE, **more}
    return build_bank(pool or small_pool(), OWN, base, folder, config=config, encoders=ENCODERS, **more)


def trained_alone(
    base: BaseModel, user: User, *, frozen: Adapter | None = None, key: str | None = SHARED_INIT
) -> Adapter:
    rows = user_rows(base.tokens, OWN, user, train=TRAIN, prompts=PROMPTS)
    beneath = recipe(frozen) if frozen else None
    (done,) = train(base, [TrainJob(user.user_id, rows.rows, TRAIN, frozen=beneath, init_key=key)], engine=ENGINE)
    return done.adapter


def close(one: Adapter, two: Adapter, tolerance: float = 1e-5) -> bool:
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return all(n1 == n2 and float((a - b).abs().max()) < tolerance for (n1, a), (n2, b) in pairs)


# what is in a bank ------------------------------------------------------------------------------------------------


def test_anchors_are_the_most_active_of_each_topic_and_each_is_trained_on_its_own_items(tmp_path, base) -> None:
    bank = build(tmp_path, base)
    pool = {user.user_id: user for user in small_pool()}
    assert sorted(bank.anchor_ids) == ["p1", "p3", "p5"]
    assert (bank.asked, len(bank.anchors)) == (3, 3)
    for anchor in bank.anchors:
        user = pool[anchor.user_id]
        assert (anchor.history_size, anchor.examples) == (len(user.history), len(user.history))
        assert anchor.data_fingerprint == history_fingerprint(user)
        assert anchor.updates == TRAIN.epochs * -(-len(user.history) // TRAIN.batch_size)
        rows = user_rows(base.tokens, OWN, user, train=TRAIN, prompts=PROMPTS).rows
        assert anchor.tokens == TRAIN.epochs * sum(map(len, rows))
        assert close(bank.adapter(anchor.user_id), trained_alone(base, user))
        assert bank.adapter(anchor.user_id).norm() > 0
    assert same_bank(load_bank(tmp_path, base=base), bank)
    assert not (tmp_path / "work").exists()


def test_vectors_belong_to_their_anchors(tmp_path, base) -> None:
    bank = build(tmp_path, base)
    pool = {user.user_id: user for user in small_pool()}
    anchors = [pool[name] for name in bank.anchor_ids]
    wanted = document_vectors(ENCODER, anchors, OWN.document_text)
    assert torch.equal(bank.active_vectors, wanted)
    assert len({tuple(row.tolist()) for row in wanted}) == 3


def test_users_without_a_history_are_passed_over_without_shifting_the_others(tmp_path, base) -> None:
    empty = User("nobody", ())
    pool = [empty, *[user for one in small_pool() for user in (one, replace(empty, user_id=f"no-{one.user_id}"))]]
    assert sorted(build(tmp_path, base, pool=pool).anchor_ids) == ["p1", "p3", "p5"]


@pytest.mark.parametrize("shared", [True, False])
def test_all_anchors_start_from_one_A_if_asked(tmp_path, base, shared: bool) -> None:
    bank = build(tmp_path, base, replace(BANK, train=STILL, shared_init=shared))
    first, second, third = (bank.adapter(name) for name in bank.anchor_ids)
    for module in first.modules:
        same = torch.equal(first.modules[module].A, second.modules[module].A)
        assert same == torch.equal(first.modules[module].A, third.modules[module].A) == shared
        if shared:
            shape = tuple(first.modules[module].A.shape)
            assert torch.equal(first.modules[module].A, initial_A(shape, seed=42, key="bank", module=module))
    assert {adapter.norm() for adapter in (first, second, third)} == {0.0}


def test_a_frozen_A_stays_one_halves_the_file_and_makes_both_merges_equal(tmp_path, base) -> None:
    fixed = build(tmp_path / "fixed", base, replace(BANK, train=replace(TRAIN, train_a=False)))
    free = build(tmp_path / "free", base)
    for bank, equal in ((fixed, True), (free, False)):
        adapters, weights = [bank.adapter(name) for name in bank.anchor_ids], [0.5, 0.3, 0.2]
        one, two = (adapter.modules for adapter in adapters[:2])
        assert all(torch.equal(one[name].A, two[name].A) == equal for name in one)
        exact, mixed = merge_cat(adapters, weights), merge_linear(adapters, weights)
        largest = max(float((exact.delta(name) - mixed.delta(name)).abs().max()) for name in one)
        assert (largest < 1e-6) == equal
        assert (distance(exact, mixed)[0] < 1e-6) == equal
    sizes = [(tmp_path / name / ADAPTERS).stat().st_size for name in ("fixed", "free")]
    assert sizes[0] < 0.8 * sizes[1]


def test_document_first512_embeds_the_joined_history(tmp_path, base) -> None:
    """In both the vectors are the encoder's; only one is a mean of item vectors."""
    bank = build(tmp_path, base, replace(BANK, match=replace(BANK.match, document="first512")))
    pool = {user.user_id: user for user in small_pool()}
    for name, row in zip(bank.anchor_ids, bank.active_vectors, strict=True):
        texts = [OWN.document_text(item) for item in pool[name].history]
        assert torch.equal(row, ENCODER.embed([" ".join(texts)])[0])
        mean = ENCODER.embed(texts).double().mean(dim=0).float()
        assert not torch.allclose(row, mean, atol=1e-3)


# population beneath -----------------------------------------------------------------------------------------------


def test_the_time_of_what_lies_beneath_is_time_of_the_bank(tmp_path: Path, base: BaseModel) -> None:
    build(tmp_path / "bank", base, replace(BANK, population_beneath=True), work=tmp_path / "work")
    kept = {path.parent.name: read_json(path)["jobs"] for path in (tmp_path / "work").glob("*/timing.json")}
    assert {name: len(jobs) for name, jobs in kept.items()} == {"population": 1, "anchors": 3}
    seconds = sum(job["seconds"] for jobs in kept.values() for job in jobs.values())
    assert read_json(tmp_path / "bank" / MANIFEST)["train_seconds"] == pytest.approx(seconds)


def test_anchors_over_a_population_learn_what_differs_from_it(tmp_path, base) -> None:
    population_train = replace(TRAIN, rank=3, epochs=3, target_modules=("v_proj",))
    config = replace(BANK, population_beneath=True, population_train=population_train)
    bank = build(tmp_path, base, config)
    pool = {user.user_id: user for user in small_pool()}
    assert bank.population is not None
    assert set(bank.population.modules) == set(base.shapes(("v_proj",)))

    rows = [
        row for user in small_pool() for row in user_rows(base.tokens, OWN, user, train=TRAIN, prompts=PROMPTS).rows
    ]
    assert len(rows) == sum(len(user.history) for user in small_pool())
    (everybody,) = train(base, [TrainJob("population", tuple(rows), population_train)], engine=ENGINE)
    assert close(bank.population, everybody.adapter)

    for name in bank.anchor_ids:
        on_top = trained_alone(base, pool[name], frozen=bank.population)
        assert close(bank.adapter(name), on_top)
        assert not close(on_top, trained_alone(base, pool[name]), tolerance=1e-4), "the population should matter"
    assert same_bank(load_bank(tmp_path, base=base), bank)


@pytest.mark.parametrize("mode", ["cat", "linear"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_merged_recipe_holds_the_population_once_and_unscaled(tmp_path, base, mode: str, scale: float) -> None:
    bank = build(tmp_path, base, replace(BANK, population_beneath=True, train=replace(TRAIN, train_a=False)))
    names, weights = bank.anchor_ids[:2], (0.7, 0.3)
    made = merged_recipe(Match("ann", names, (0.9, 0.4), weights), bank, MergeConfig(mode=mode, scale=scale))
    adapter = made.make()
    assert made.rank == adapter.rank
    for module in adapter.modules:
        anchors = sum(w * bank.adapter(name).delta(module) for name, w in zip(names, weights, strict=True))
        assert torch.allclose(adapter.delta(module), bank.population.delta(module) + scale * anchors, atol=1e-6)


# early stopping ---------------------------------------------------------------------------------------------------


def test_held_out_items_stop_anchors_early_and_their_losses_are_kept(tmp_path, base) -> None:
    wild = replace(TRAIN, held_out_share=0.3, epochs=30, lr=0.3, patience=2)
    bank = build(tmp_path, base, replace(BANK, train=wild))
    pool = {user.user_id: user for user in small_pool()}
    for anchor in bank.anchors:
        size = len(pool[anchor.user_id].history)
        assert anchor.examples == size - round(0.3 * size)
        assert anchor.updates < 30 * -(-anchor.examples // 2), "thirty wild epochs should not all be made"
        judged = anchor.held_out_losses
        assert len(judged) == 1 + anchor.updates // -(-anchor.examples // 2)
        assert min(judged) not in judged[-2:], "two worse epochs end it"
    assert load_bank(tmp_path).anchors == bank.anchors


def test_too_few_anchors_are_refused_before_any_training(tmp_path, base) -> None:
    heard = Heard()
    few = replace(BANK, anchors=replace(BANK.anchors, min_history=7))  # p5 alone has more
    with pytest.raises(ConfigError, match=r"1 of 3 anchors are kept.*2 are merged per user; lower --top-k"):
        build(tmp_path, base, few, min_anchors=2, progress=heard)
    build(tmp_path, base, few, min_anchors=1, progress=(whole := Heard()))
    assert len(heard.stages) < len(whole.stages), "stopped before the anchors' training"


# a second call ----------------------------------------------------------------------------------------------------


def test_the_same_call_again_trains_nothing(tmp_path, base) -> None:
    bank = build(tmp_path, base)
    heard = Heard()
    (tmp_path / "work").mkdir()  # what a kill between the last write and the clean-up leaves
    assert same_bank(build(tmp_path, base, progress=heard), bank)
    assert heard.stages == []
    assert not (tmp_path / "work").exists()


CHANGES = {
    "rank": replace(BANK, train=replace(TRAIN, rank=1)),
    "learning rate": replace(BANK, train=replace(TRAIN, lr=2e-2)),
    "seed": replace(BANK, train=replace(TRAIN, seed=7)),
    "init": replace(BANK, shared_init=False),
    "prompt": replace(BANK, prompts=replace(PROMPTS, history_k=0)),
    "targets": replace(BANK, train=replace(TRAIN, target_modules=ALL_LINEAR)),
    "population": replace(BANK, population_beneath=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_gives_the_bank_it_would_give_alone(tmp_path, base, change: str) -> None:
    first = build(tmp_path / "one", base)
    heard = Heard()
    second = build(tmp_path / "one", base, CHANGES[change], progress=heard)
    alone = build(tmp_path / "two", base, CHANGES[change])
    assert "bank training" in heard.trained()
    assert same_bank(replace(second, folder=alone.folder), alone)
    assert second.checksum != first.checksum


def test_changed_data_builds_again(tmp_path, base) -> None:
    first = build(tmp_path, base)
    pool = small_pool()
    item = HistoryItem("i0", {"input": "engine p3 something new", "output": "else"})
    pool[3] = replace(pool[3], history=(item, *pool[3].history[1:]))
    second = build(tmp_path, base, pool=pool)
    changed = [a.user_id for a, b in zip(first.anchors, second.anchors, strict=True) if a != b]
    assert changed == ["p3"]
    assert second.adapter("p3").fingerprint() != first.adapter("p3").fingerprint()


def test_a_bank_of_another_task_or_base_model_is_never_replaced(tmp_path, base) -> None:
    build(tmp_path, base)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    heard = Heard()
    with pytest.raises(ConfigError, match=r"holds a bank of task 'own' on base model 'tiny' .*choose another folder"):
        build(tmp_path, tiny_base(torch.float32, seed=1), progress=heard)
    pool = [author(name, citing=True) for name in ("alpha", "beta", "gamma")]
    with pytest.raises(ConfigError, match=r"holds a bank of task 'own' .*, not of 'lamp-1' on 'tiny'"):
        build_bank(pool, get_task("lamp-1"), base, tmp_path, config=BANK, encoders=ENCODERS, progress=heard)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert heard.stages == []


def test_a_damaged_bank_is_built_again(tmp_path, base, caplog) -> None:
    bank = build(tmp_path, base)
    for name in (ADAPTERS, MANIFEST):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
        with caplog.at_level(logging.WARNING):
            assert same_bank(build(tmp_path, base), bank)
        assert f"{name}" in caplog.text
        caplog.clear()


def test_a_retired_anchor_stays_retired(tmp_path, base) -> None:
    retire_anchor(build(tmp_path, base), "p3")
    assert "p3" not in build(tmp_path, base).anchor_ids


# what cannot be built ---------------------------------------------------------------------------------------------


def author(name: str, *, citing: bool, count: int = 4) -> User:
    rows = [{"title": f"{name} title {n}", "abstract": f"about {n}"} for n in range(count)]
    if citing:
        rows = [{**row, "citation": f"{name} cites {n}"} for n, row in enumerate(rows)]
    return User(name, tuple(HistoryItem(f"{name}-{n}", row) for n, row in enumerate(rows)))


def test_an_anchor_without_training_pairs_is_left_out_and_counted(tmp_path, base, caplog) -> None:
    pool = [author("alpha", citing=True), author("beta", citing=False), author("gamma", citing=True)]
    config = replace(BANK, prompts=replace(PROMPTS, max_tokens=1024))
    with caplog.at_level(logging.WARNING):
        bank = build_bank(pool, get_task("lamp-1"), base, tmp_path, config=config, encoders=ENCODERS, engine=ENGINE)
    assert sorted(bank.anchor_ids) == ["alpha", "gamma"]
    assert (bank.asked, len(bank.anchors), read_json(tmp_path / MANIFEST)["kept"]) == (3, 2, 2)
    assert "beta left out: no training examples" in caplog.text
    wanted = {user.user_id: document_vectors(ENCODER, [user], get_task("lamp-1").document_text)[0] for user in pool}
    for name, row in zip(bank.anchor_ids, bank.active_vectors, strict=True):
        assert torch.equal(row, wanted[name])


def test_a_pool_that_teaches_nothing_is_refused(tmp_path, base) -> None:
    silent = [author(name, citing=False) for name in ("alpha", "beta", "gamma")]
    with pytest.raises(DataError, match="none of the 3 anchors has a training example"):
        build_bank(silent, get_task("lamp-1"), base, tmp_path, config=BANK, encoders=ENCODERS, engine=ENGINE)
    with pytest.raises(DataError, match="none of the 2 pool users has a history"):
        build(tmp_path, base, pool=[User("a", ()), User("b", ())])
    with pytest.raises(ConfigError, match="bank_size asks for 3 clusters, but the pool has 2 users"):
        build(tmp_path, base, pool=[person("a"), person("b")])
    varied = replace(BANK, anchors=replace(BANK.anchors, min_label_entropy=0.5))
    with pytest.raises(ConfigError, match="no history holds a label of own"):
        build(tmp_path, base, varied)


def test_a_bank_whose_anchors_all_diverge_is_refused(tmp_path, base) -> None:
    with pytest.raises(BankError, match="no anchor was trained successfully"):
        build(tmp_path, base, replace(BANK, train=replace(TRAIN, lr=1e30, clip_norm=0.0, epochs=5)))
    assert not (tmp_path / MANIFEST).exists()


# judges -----------------------------------------------------------------------------------------------------------


def asked_pool() -> list[User]:
    """Everybody has an answered question; p5 has a second record under another id."""
    question = Query("q", "what?", gold="that")
    pool = [replace(user, queries=(replace(question, query_id=f"q-{user.user_id}"),)) for user in small_pool()]
    return [*pool, replace(pool[5], user_id="p5 again", queries=())]


def test_judges_are_neither_anchors_nor_part_of_what_lies_beneath(tmp_path, base, monkeypatch) -> None:
    pool, learned = asked_pool(), []

    def watched(tokens, task, user, **more):
        learned.append(user.user_id)
        return user_rows(tokens, task, user, **more)

    monkeypatch.setattr("mta.bank_plan.user_rows", watched)
    for count, taken in ((1, 1), (2, 2), (9, 2)):
        learned.clear()
        judges = {user.user_id for user in draw_judges(pool, OWN, most=taken)}
        config = replace(BANK, judges=count, population_beneath=True, anchors=replace(BANK.anchors, bank_size=1))
        bank = build(tmp_path / str(count), base, config, pool=pool)
        aside = {*judges, *(["p5 again"] if "p5" in judges else [])}
        assert len(judges) == taken, "at most a third of six people"
        assert set(learned) == {user.user_id for user in pool} - aside
        assert not aside & set(bank.anchor_ids)


def test_judges_are_drawn_by_id_and_know_their_answers() -> None:
    pool = asked_pool()
    everybody = [user.user_id for user in draw_judges(pool, OWN, most=99)]
    assert sorted(everybody) == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert [user.user_id for user in draw_judges(pool[::-1], OWN, most=3)] == everybody[:3]
    assert "p5" not in {user.user_id for user in draw_judges(pool, OWN, most=99, others_than=["p5 again"])}
    silent = [replace(user, queries=tuple(replace(query, gold=None) for query in user.queries)) for user in pool]
    assert draw_judges(silent, OWN, most=99) == []
