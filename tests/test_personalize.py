"""The whole path for one user and for many: merged plus own, either alone, and answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import tiny_base
from mta.adapter_files import load_adapter
from mta.bank import Bank, retire_anchor
from mta.bank_building import build_bank
from mta.base_model import BaseModel
from mta.config import MergeConfig, PromptConfig
from mta.encoders import HashingEncoder
from mta.errors import BankError, ConfigError, DataError, MtaError
from mta.generation import Request, generate
from mta.lora.adapter import Adapter, cat
from mta.merging import merge_cat, merge_linear
from mta.personalize import (
    Personalized,
    Resources,
    answer,
    match_users,
    personalize,
    personalize_users,
    stack_recipes,
)
from mta.prompting import render
from mta.records import HistoryItem, User
from mta.tasks import get_task
from mta.tasks.examples import query_examples
from small_world import (
    ADAPT,
    BANK,
    ENCODER,
    ENCODERS,
    ENGINE,
    OWN,
    PROMPTS,
    TOPICS,
    Heard,
    invented_bank,
    person,
    small_pool,
    small_targets,
)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


@pytest.fixture(scope="module")
def bank(base, tmp_path_factory) -> Bank:
    """A trained bank of three anchors, one on each topic."""
    folder = tmp_path_factory.mktemp("bank")
    return build_bank(small_pool(), OWN, base, folder, config=BANK, encoders=ENCODERS, engine=ENGINE)


def resources(base: BaseModel, bank: Bank | None, folder: Path, **changes) -> Resources:
    known = Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, bank=bank, encoder=ENCODER, engine=ENGINE
    )
    return replace(known, **changes)


def made(person: Personalized) -> Adapter:
    assert person.adapter is not None
    adapter = person.adapter.make()
    assert adapter.rank == person.adapter.rank
    return adapter


def same_delta(one: Adapter, two: Adapter, tolerance: float = 1e-6) -> bool:
    assert set(one.modules) == set(two.modules)
    return all(torch.allclose(one.delta(name), two.delta(name), atol=tolerance) for name in one.modules)


# merged and own ---------------------------------------------------------------------------------------------------


def test_the_whole_is_the_sum_of_merged_and_own(base, bank, tmp_path) -> None:
    """Eq. 1: both parts are additive on the frozen base."""
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    whole = personalize_users(small_targets(), resources(base, bank, tmp_path))
    assert list(whole.users) == ["ann", "bob", "cy"]
    assert whole.train_seconds > 0
    assert whole.shared_seconds == bank.train_seconds > 0
    for one in whole.users.values():
        assert one.match is not None
        merged = merge_cat([bank.adapter(name) for name in one.match.anchor_ids], one.match.weights)
        own = stored(tmp_path / "mta", one.user.user_id, base)
        assert made(one).fingerprint() == cat([merged, own]).fingerprint()
        assert made(one).rank == 2 * 2 + 1
        assert one.updates == ADAPT.epochs * -(-len(one.user.history) // ADAPT.batch_size)
        assert one.adapter_bytes == 4 * own.parameters
        assert one.note == ""
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


def stored(folder: Path, user_id: str, base: BaseModel) -> Adapter:
    return load_adapter(folder / f"{user_id}.safetensors", base=base)[0]


def test_either_part_alone_is_the_same_call_with_the_other_left_out(base, bank, tmp_path) -> None:
    users, have = small_targets(), resources(base, bank, tmp_path)
    merged = personalize_users(users, have, adapted=False)
    own = personalize_users(users, have, merged=False, name="adapt-only")
    neither = personalize_users(users, have, merged=False, adapted=False)
    for user in users:
        name = user.user_id
        assert (merged.users[name].updates, merged.users[name].adapter_bytes) == (0, 0)
        assert made(merged.users[name]).rank == 4
        assert merged.users[name].match == match_users([user], have)[name]
        assert made(own.users[name]).rank == 1
        assert own.users[name].match is None
        assert made(own.users[name]).fingerprint() == stored(tmp_path / "adapt-only", name, base).fingerprint()
        assert neither.users[name].adapter is None
    assert merged.train_seconds == neither.train_seconds == 0.0
    assert (merged.shared_seconds, own.shared_seconds, neither.shared_seconds) == (bank.train_seconds, 0.0, 0.0)
    assert not (tmp_path / "mta").exists()


def test_adapt_only_needs_no_bank_and_merging_does(base, tmp_path) -> None:
    have = resources(base, None, tmp_path)
    assert made(personalize_users(small_targets(), have, merged=False).users["ann"]).rank == 1
    with pytest.raises(BankError, match="no bank was given"):
        personalize_users(small_targets(), have)


def test_what_is_learned_depends_on_what_is_merged(base, bank, tmp_path) -> None:
    whole = personalize_users(small_targets()[:1], resources(base, bank, tmp_path), name="a")
    alone = personalize_users(small_targets()[:1], resources(base, bank, tmp_path), merged=False, name="b")
    assert whole.users["ann"].updates == alone.users["ann"].updates
    apart = [stored(tmp_path / name, "ann", base) for name in ("a", "b")]
    assert not same_delta(*apart, tolerance=1e-5)


@pytest.mark.parametrize(("mode", "rank"), [("cat", 4), ("linear", 2)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_merge_is_the_one_asked_for(base, bank, tmp_path, mode: str, rank: int, scale: float) -> None:
    have = resources(base, bank, tmp_path, merge=MergeConfig(mode=mode, scale=scale))
    for one in personalize_users(small_targets(), have, adapted=False).users.values():
        assert one.match is not None
        anchors = [bank.adapter(name) for name in one.match.anchor_ids]
        wanted = (merge_cat if mode == "cat" else merge_linear)(anchors, one.match.weights)
        adapter = made(one)
        assert adapter.rank == rank
        for module in adapter.modules:
            assert torch.allclose(adapter.delta(module), scale * wanted.delta(module), atol=1e-6)


def test_recipes_are_told_apart_by_all_that_decides_them(base, bank, tmp_path) -> None:
    """Answers are reused by the recipe's fingerprint, so nothing may be missing in it."""
    users = small_targets()
    found = [
        personalize_users(users, resources(base, bank, tmp_path, **changes), adapted=adapted).users["ann"]
        for adapted in (False, True)
        for changes in (
            {},
            {"merge": MergeConfig(mode="linear")},
            {"merge": MergeConfig(scale=0.5)},
            {"match": replace(BANK.match, top_k=1)},
            {"adapt": replace(ADAPT, seed=1)} if adapted else {"match": replace(BANK.match, top_k=3)},
        )
    ]
    prints = [one.adapter.fingerprint for one in found if one.adapter]
    assert len(set(prints)) == len(prints) == 10
    again = personalize_users(users, resources(base, bank, tmp_path)).users["ann"]
    assert again.adapter is not None
    assert again.adapter.fingerprint == prints[5]
    assert (
        len({p.adapter.fingerprint for p in personalize_users(users, resources(base, bank, tmp_path)).users.values()})
        == 3
    )


def test_stacking_recipes() -> None:
    assert stack_recipes([]) is None


# matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_any_number_of_anchors_up_to_the_whole_bank(base, bank, tmp_path, top_k: int) -> None:
    have = resources(base, bank, tmp_path, match=replace(BANK.match, top_k=top_k))
    owners = {"ann": "p1", "bob": "p3", "cy": "p5"}  # the anchors on their topics
    for name, match in match_users(small_targets(), have).items():
        assert len(match.anchor_ids) == len(match.weights) == top_k
        assert match.anchor_ids[0] == owners[name]
        assert list(match.similarities) == sorted(match.similarities, reverse=True)
        assert list(match.weights) == sorted(match.weights, reverse=True)
        assert sum(match.weights) == pytest.approx(1.0)
        positive = [max(0.0, similarity) for similarity in match.similarities]
        assert match.weights == pytest.approx([value / sum(positive) for value in positive])
    merged = personalize_users(small_targets(), have, adapted=False)
    assert made(merged.users["ann"]).rank == 2 * top_k


def test_a_match_is_the_same_to_the_last_bit_in_any_company(base, tmp_path, monkeypatch) -> None:
    """The weights decide which stored adapters fit; a rounding error would train everybody again."""
    bank = invented_bank(tmp_path / "bank", base=base, anchors=7)
    users = [person(f"user {number}", items=2 + number % 5, topic=number) for number in range(20)]
    have = resources(base, bank, tmp_path, match=replace(BANK.match, top_k=7))
    together = match_users(users, have)
    for size in (1, 2, 3, 7, 19):
        assert all(match == together[name] for name, match in match_users(users[:size], have).items())
    monkeypatch.setattr("mta.merging.BLOCK_VALUES", 1)  # blocks of 16 users
    assert match_users(users, have) == together


def test_a_new_user_trains_alone(base, bank, tmp_path) -> None:
    first = personalize_users(small_targets(), resources(base, bank, tmp_path))
    heard = Heard()
    users = [person("dora", items=3), *small_targets()]
    second = personalize_users(users, resources(base, bank, tmp_path, progress=heard))
    assert {total for stage, _, total in heard.steps if stage == "adaptation"} == {4}
    for name in first.users:
        assert made(second.users[name]).fingerprint() == made(first.users[name]).fingerprint()


def test_more_anchors_than_the_bank_has_are_refused(base, bank, tmp_path) -> None:
    with pytest.raises(ConfigError, match="top_k is 4 but the bank has 3 anchors"):
        match_users(small_targets(), resources(base, bank, tmp_path, match=replace(BANK.match, top_k=4)))


def test_retired_anchors_are_not_matched(base, tmp_path) -> None:
    bank = invented_bank(tmp_path / "bank", base=base)
    before = match_users(small_targets(), resources(base, bank, tmp_path, match=replace(BANK.match, top_k=3)))
    left = retire_anchor(bank, "anchor/1")
    with pytest.raises(ConfigError, match="the bank has 2 anchors"):
        match_users(small_targets(), resources(base, left, tmp_path, match=replace(BANK.match, top_k=3)))
    for name, match in match_users(small_targets(), resources(base, left, tmp_path)).items():
        known = dict(zip(before[name].anchor_ids, before[name].similarities, strict=True))
        assert "anchor/1" not in match.anchor_ids
        assert match.similarities == pytest.approx([known[anchor] for anchor in match.anchor_ids])


class TopicEncoder:
    """One dimension a topic: how often a text names it; reads no more than its first 60 characters."""

    name, fingerprint, dimensions = "topics", "topics-1", len(TOPICS)

    def __init__(self) -> None:
        self.read: list[str] = []

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.read += texts
        return torch.tensor([[float(text[:60].count(topic)) for topic in TOPICS] for text in texts])


@pytest.mark.parametrize("document", ["item_mean", "first512"])
def test_the_bank_decides_what_a_users_vector_is_made_of(base, tmp_path, document: str) -> None:
    """Two items name the garden once and twice; a third, beyond the window of the joined text, the violin."""
    rows = ["garden", "garden garden and then a lot of other words", "violin violin violin"]
    user = User("ann", tuple(HistoryItem(str(n), {"input": text, "output": "x"}) for n, text in enumerate(rows)))
    config = replace(BANK, match=replace(BANK.match, document=document))
    written = invented_bank(tmp_path, base=base, config=config)
    anchors = torch.eye(4)[:3]  # garden, engine, violin
    bank = replace(written, vectors=anchors, matching_encoder="topics-1")
    encoder = TopicEncoder()
    have = resources(base, bank, tmp_path, encoder=encoder, match=replace(BANK.match, top_k=3))
    match = match_users([user], have)["ann"]
    vector = {"item_mean": (1.0, 0.0, 1.0), "first512": (3.0, 0.0, 0.0)}[document]
    length = sum(value**2 for value in vector) ** 0.5
    wanted = dict(zip(("anchor/0", "anchor/1", "anchor/2"), (value / length for value in vector), strict=True))
    assert match.similarities == pytest.approx([wanted[name] for name in match.anchor_ids], abs=1e-5)
    assert len(encoder.read) == (3 if document == "item_mean" else 1)
    assert (" ".join(f"{text} x" for text in rows) in encoder.read) == (document == "first512")


def test_another_encoder_than_the_banks_is_refused(base, bank, tmp_path) -> None:
    other = HashingEncoder(seed=1)
    with pytest.raises(BankError, match="made with encoder 'tiny-random'"):
        match_users(small_targets(), resources(base, bank, tmp_path, encoder=other))


def test_a_user_without_a_history_is_refused(base, bank, tmp_path) -> None:
    with pytest.raises(DataError, match="'nobody' has no history"):
        personalize_users([User("nobody", ())], resources(base, bank, tmp_path))


def test_an_anchor_is_not_served_from_her_own_adapter(base, bank, tmp_path) -> None:
    anchor = next(user for user in small_pool() if user.user_id in bank.anchor_ids)
    for one in (anchor, replace(anchor, user_id="under another name")):
        with pytest.raises(DataError, match="1 of 1 target users are anchors"):
            match_users([one], resources(base, bank, tmp_path))
        with pytest.raises(DataError, match="are anchors"):
            personalize(one, bank=bank, base=base, adapt=ADAPT, folder=tmp_path / "own")
    assert not list(tmp_path.iterdir())


# users of every kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", ["../../etc/x", "a/b", "", "C:\\x", "ñ☃", "x" * 400, "unfinished", "con"])
def test_any_user_id_is_served_and_stays_in_its_folder(base, bank, tmp_path, user_id: str) -> None:
    users = [person(user_id, items=3), person("other", items=3)]
    folder = tmp_path / "deep" / "adapters"
    found = personalize_users(users, resources(base, bank, folder))
    assert set(found.users) == {user_id, "other"}
    assert found.users[user_id].updates == 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(path.parent == folder / "mta" for path in files)
    again = personalize_users(users, resources(base, bank, folder)).users[user_id]
    assert made(again).fingerprint() == made(found.users[user_id]).fingerprint()


def test_a_user_without_training_pairs_is_merged_only_and_says_why(base, tmp_path) -> None:
    bank = replace(invented_bank(tmp_path / "bank", base=base), task=get_task("lamp-1"))
    rows = tuple(HistoryItem(str(n), {"title": f"a title {n}", "abstract": "some"}) for n in range(3))
    have = resources(base, bank, tmp_path, task=get_task("lamp-1"), prompts=replace(PROMPTS, max_tokens=2048))
    found = personalize_users([User("ann", rows)], have).users["ann"]
    assert found.note == "no training example in the history"
    assert (found.updates, found.adapter_bytes) == (0, 0)
    assert found.match is not None
    merged = merge_cat([bank.adapter(name) for name in found.match.anchor_ids], found.match.weights)
    assert made(found).fingerprint() == merged.fingerprint()


# one user ---------------------------------------------------------------------------------------------------------


def test_one_user_alone_equals_one_among_many(base, bank, tmp_path) -> None:
    many = personalize_users(small_targets(), resources(base, bank, tmp_path))
    for user in small_targets():
        alone = personalize(user, bank=bank, base=base, adapt=ADAPT)
        assert alone.match == many.users[user.user_id].match
        assert same_delta(made(alone), made(many.users[user.user_id]), tolerance=1e-5)
        assert alone.prompts == bank.config.prompts


def test_one_user_works_after_the_temporary_folder_is_gone_and_may_keep_a_folder(base, bank, tmp_path) -> None:
    ann = small_targets()[0]
    first, second = (personalize(ann, bank=bank, base=base, adapt=ADAPT, folder=folder) for folder in (None, tmp_path))
    assert made(first).fingerprint() == made(second).fingerprint()
    assert [path.name for path in (tmp_path / "mta").glob("*.safetensors")] == ["ann.safetensors"]


@pytest.mark.parametrize("top_k", [1, 3])
def test_one_user_takes_as_many_anchors_as_asked(base, bank, top_k: int) -> None:
    ann = personalize(small_targets()[0], bank=bank, base=base, adapt=ADAPT, top_k=top_k)
    assert ann.match is not None
    assert len(ann.match.anchor_ids) == top_k


def test_one_users_default_is_the_banks_top_k_or_as_many_as_are_left(base, tmp_path) -> None:
    bank = invented_bank(tmp_path, base=base, anchors=2)
    ann = small_targets()[0]
    assert len(personalize(ann, bank=bank, base=base, adapt=ADAPT).match.anchor_ids) == 2
    left = retire_anchor(bank, "anchor/0")
    assert personalize(ann, bank=left, base=base, adapt=ADAPT).match.anchor_ids == ("anchor/1",)
    for top_k in (0, -1, 2):
        with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
            personalize(ann, bank=left, base=base, adapt=ADAPT, top_k=top_k)


def test_one_user_needs_the_banks_base_model(bank) -> None:
    with pytest.raises(BankError, match="trained on base model"):
        personalize(small_targets()[0], bank=bank, base=tiny_base(torch.float32, seed=3))


# answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_adapted_model_writes_to_the_rendered_query(base, bank) -> None:
    ann = personalize(small_targets()[0], bank=bank, base=base, adapt=replace(ADAPT, epochs=10))
    query = ann.user.queries[0]
    (example, *_) = query_examples(OWN, ann.user, history_k=PROMPTS.history_k)
    row = base.tokens.row(render(OWN, example, PROMPTS), None, PROMPTS)
    (text,) = generate(base, [Request(row, made(ann))], max_new_tokens=OWN.max_new_tokens, engine=ENGINE)
    assert answer(ann, query.text, base=base) == OWN.clean(text)
    bare = replace(ann, adapter=None)
    (plain,) = generate(base, [Request(row)], max_new_tokens=OWN.max_new_tokens, engine=ENGINE)
    assert answer(bare, query.text, base=base) == OWN.clean(plain)
    assert text != plain, "an adapter that changes nothing would show nothing here"


def test_a_query_too_long_is_cut_and_answered(base, bank) -> None:
    ann = personalize(small_targets()[0], bank=bank, base=base, adapt=ADAPT)
    assert isinstance(answer(ann, "very " * 5000 + "long", base=base), str)


def test_a_raw_query_of_a_labelled_task_is_cleaned(base, tmp_path) -> None:
    task = get_task("lamp-3")
    user = User("ann", (HistoryItem("1", {"text": "fine", "score": "4"}),))
    prompts = PromptConfig(history_k=1, max_tokens=1024)
    me = Personalized(user, task, None, lambda example: render(task, example, prompts), prompts)
    text = (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: good"
    )
    assert answer(me, text, base=base) == task.clean(answer(me, text, base=base))
    with pytest.raises(MtaError, match="query 'query'"):
        answer(me, "a text that is no query of the task", base=base)


def test_no_warning_is_written_for_an_ordinary_user(base, bank, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        personalize(small_targets()[0], bank=bank, base=base, adapt=ADAPT)
    assert caplog.text == ""
