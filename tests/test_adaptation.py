"""Stage 3: each user's own adapter over a frozen composition, many at once and each as if alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import random_adapter, tiny_base
from mta.adaptation import Adaptation, adapt_users
from mta.base_model import BaseModel
from mta.config import ALL_LINEAR, QUERY_VALUE, PromptConfig
from mta.lora.adapter import Adapter, cat, recipe
from mta.merging import merge_cat
from mta.records import HistoryItem, User
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows
from small_world import ADAPT, ENGINE, OWN, PROMPTS, Heard, person, small_targets


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def merged(base: BaseModel, seed: int = 0) -> Adapter:
    return merge_cat([random_adapter(base, QUERY_VALUE, seed=seed + k, rank=2) for k in range(2)], [0.6, 0.4])


def adapt(users: list[User], folder: Path, base: BaseModel, **changes) -> Adaptation:
    settings = {"beneath": {}, "train": ADAPT, "prompts": PROMPTS, "engine": ENGINE, "task": OWN, **changes}
    return adapt_users(base, settings.pop("task"), users, folder, **settings)


def largest_difference(one: Adapter, two: Adapter) -> float:
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def test_each_user_is_trained_as_if_alone_on_what_lies_beneath(base, tmp_path) -> None:
    users = small_targets()
    beneath = {"ann": recipe(merged(base)), "bob": recipe(merged(base, seed=50))}  # nothing beneath cy
    found = adapt(users, tmp_path, base, beneath=beneath)
    assert list(found.adapters) == ["ann", "bob", "cy"]
    assert (found.skipped, found.cut_rows) == ({}, 0)
    assert found.seconds > 0
    for user in users:
        rows = user_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS).rows
        job = TrainJob(user.user_id, rows, ADAPT, frozen=beneath.get(user.user_id))
        (alone,) = train(base, [job], engine=ENGINE)
        stored = found.adapters[user.user_id]
        assert largest_difference(stored.load(base), alone.adapter) < 1e-5
        assert stored.note.updates == alone.updates == ADAPT.epochs * -(-len(user.history) // ADAPT.batch_size)
        assert stored.load(base).rank == ADAPT.rank


def test_what_lies_beneath_changes_what_is_learned(base, tmp_path) -> None:
    user = person("ann", items=4)
    bare = adapt([user], tmp_path / "bare", base).adapters["ann"]
    over = adapt([user], tmp_path / "over", base, beneath={"ann": recipe(merged(base))}).adapters["ann"]
    assert largest_difference(bare.load(base), over.load(base)) > 1e-4
    assert bare.note.first_loss != over.note.first_loss


def test_the_loss_falls_on_the_users_own_examples(base, tmp_path) -> None:
    train_long = replace(ADAPT, rank=8, alpha=16.0, epochs=40, batch_size=4, target_modules=ALL_LINEAR)
    note = adapt([person("ann", items=4)], tmp_path, base, train=train_long).adapters["ann"].note
    assert note.last_loss < note.first_loss - 0.3  # the head of a random model this small allows little more


def test_base_and_composition_are_untouched(base, tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    adapter = merged(base)
    sums = adapter.fingerprint()
    adapt(small_targets(), tmp_path, base, beneath={"ann": recipe(adapter)})
    assert adapter.fingerprint() == sums
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert cat([adapter]).fingerprint() == sums


def test_users_who_cannot_be_adapted_are_named_with_the_reason(base, tmp_path) -> None:
    def author(name: str, **more: str) -> User:
        rows = [{"title": f"{name} {n}", **{key: f"{text} {n}" for key, text in more.items()}} for n in range(3)]
        return User(name, tuple(HistoryItem(f"{n}", row) for n, row in enumerate(rows)))

    users = [author("ann"), author("bob", citation="bob cites")]
    prompts = PromptConfig(history_k=0, max_tokens=1024, template="plain")
    found = adapt(users, tmp_path, base, task=get_task("lamp-1"), prompts=prompts)
    assert list(found.adapters) == ["bob"]
    assert found.skipped == {"ann": "no training example in the history"}


def test_a_diverged_user_is_named_and_the_others_are_kept(base, tmp_path, caplog) -> None:
    huge = recipe(random_adapter(base, QUERY_VALUE, seed=1, rank=2, size=float("1e30")))
    with caplog.at_level(logging.WARNING):
        found = adapt(small_targets(), tmp_path, base, beneath={"bob": huge})
    assert found.skipped == {"bob": "training diverged"}
    assert list(found.adapters) == ["ann", "cy"]
    assert "bob diverged" in caplog.text
    assert all(torch.isfinite(tensor).all() for name in found.adapters for tensor in tensors(found, name, base))


def tensors(found: Adaptation, name: str, base: BaseModel) -> list[torch.Tensor]:
    return [tensor for _, tensor in found.adapters[name].load(base).tensors()]


def test_cut_prompts_are_counted(base, tmp_path) -> None:
    short = replace(PROMPTS, max_tokens=70)
    found = adapt(small_targets(), tmp_path, base, prompts=short)
    assert found.cut_rows == sum(len(user.history) for user in small_targets())


def test_nobody_gives_nobody(base, tmp_path) -> None:
    found = adapt([], tmp_path, base)
    assert (found.adapters, found.skipped) == ({}, {})


def test_a_second_call_reads_back_and_a_new_user_is_added(base, tmp_path) -> None:
    first = adapt(small_targets(), tmp_path, base)
    heard = Heard()
    assert adapt(small_targets(), tmp_path, base, progress=heard).adapters == first.adapters
    assert heard.steps == []
    more = adapt([*small_targets(), person("dora", items=3)], tmp_path, base, progress=heard)
    assert {total for _, _, total in heard.steps} == {4}, "two epochs of three examples, two at a time"
    assert {name: more.adapters[name] for name in first.adapters} == first.adapters


def test_another_composition_beneath_is_another_training(base, tmp_path) -> None:
    user = person("ann")
    adapt([user], tmp_path, base, beneath={"ann": recipe(merged(base))})
    heard = Heard()
    again = adapt([user], tmp_path, base, beneath={"ann": recipe(merged(base, seed=9))}, progress=heard)
    fresh = adapt([user], tmp_path / "new", base, beneath={"ann": recipe(merged(base, seed=9))})
    assert heard.trained() == {"adaptation"}
    assert again.adapters["ann"].load(base).fingerprint() == fresh.adapters["ann"].load(base).fingerprint()
