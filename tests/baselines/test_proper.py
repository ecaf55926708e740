"""PROPER on the tiny world: three stages, each over the frozen ones before, and who learns from whom."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import random_rows, tiny_base
from mta.adapter_files import load_trained
from mta.bank_building import build_bank
from mta.base_model import BaseModel
from mta.baselines.methods import METHODS, find_method
from mta.baselines.proper import (
    FEED_FORWARD,
    PROPER,
    GroupExperts,
    ProperConfig,
    proper,
    starting_embeddings,
    train_groups,
)
from mta.errors import AdapterError, BankError, ConfigError, DataError
from mta.evaluation.predict import predict
from mta.lora.adapter import recipe
from mta.lora.experts import RoutedUser, group_weights
from mta.merging import Match
from mta.personalize import PersonalizedUsers, Resources, answer
from mta.records import Prediction, User
from mta.training import train
from mta.training_plan import TrainJob, total_updates
from mta.training_store import train_and_store
from mta.user_rows import user_rows
from small_world import ADAPT, BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, TRAIN, Heard, small_pool, small_targets
from small_world import person as somebody

SMALL = ProperConfig(rank=2, alpha=4.0, experts=3, embedding_size=6)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


@pytest.fixture(scope="module")
def known(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Resources:
    folder = tmp_path_factory.mktemp("proper")
    bank = build_bank(small_pool(), OWN, base, folder / "bank", config=BANK, encoders=ENCODERS, engine=ENGINE)
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, bank=bank, pool=small_pool(),
        encoder=ENCODER, engine=ENGINE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(known: Resources) -> PersonalizedUsers:
    return proper(small_targets(), known, config=SMALL)


def user_of(people: PersonalizedUsers, name: str) -> RoutedUser:
    adapter = people.users[name].adapter
    assert adapter is not None
    whole = adapter.parts()
    assert isinstance(whole, RoutedUser)
    assert whole.rank == adapter.rank
    return whole


def largest_difference(one: RoutedUser, two: RoutedUser) -> float:
    assert set(one.own) == set(two.own)
    pairs = ((one.own[name], two.own[name]) for name in one.own)
    return max(float((getattr(a, key) - getattr(b, key)).abs().max()) for a, b in pairs for key in "ABVc")


def answers_of(people: PersonalizedUsers, base: BaseModel) -> list[Prediction]:
    return list(predict(list(people.users.values()), base=base, engine=ENGINE).rows)


# the whole method ---------------------------------------------------------------------------------------------------


def test_everybody_is_answered_by_a_model_of_her_own(base, known, made) -> None:
    rows = answers_of(made, base)
    assert len(rows) == sum(len(user.queries) for user in small_targets())
    assert all(row.nll is not None and math.isfinite(row.nll) for row in rows)
    assert len({one.adapter.fingerprint for one in made.users.values()}) == 3
    assert min(made.train_seconds, made.shared_seconds) > 0
    for user in small_targets():
        person = made.users[user.user_id]
        rows_of_hers = user_rows(base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS).rows
        assert person.updates == total_updates(len(rows_of_hers), ADAPT)
        texts = [row.text for row in rows if row.user_id == user.user_id]
        assert [answer(person, query.text, base=base) for query in user.queries] == texts


def test_it_is_one_of_the_methods() -> None:
    assert METHODS["proper"] is proper
    assert find_method("proper") is proper


def test_what_is_stored_of_a_user_is_counted(base, made) -> None:
    """Her factors, her router and her embedding, four bytes a value."""
    own = user_of(made, "ann").own
    values = sum(t.numel() for factors in own.values() for t in (factors.A, factors.B, factors.V, factors.c))
    assert made.users["ann"].adapter_bytes == 4 * (values + SMALL.embedding_size)
    assert set(own) == set(base.shapes(FEED_FORWARD))
    assert all(len(factors.A) == ADAPT.rank for factors in own.values())


def test_a_second_call_reads_everything_back(base, known, made) -> None:
    heard = Heard()
    again = proper(small_targets(), replace(known, progress=heard), config=SMALL)
    assert not any(stage in ("population training", "group training", "adaptation") for stage, _, _ in heard.steps)
    assert [one.adapter.fingerprint for one in again.users.values()] == [
        one.adapter.fingerprint for one in made.users.values()
    ]
    assert again.train_seconds == pytest.approx(made.train_seconds)
    assert again.shared_seconds == pytest.approx(made.shared_seconds)
    assert answers_of(again, base) == answers_of(made, base)


def test_order_and_company_do_not_matter(base, known, made, tmp_path) -> None:
    """In another folder, alone and the other way round: the same people."""
    for users in ([small_targets()[1]], small_targets()[::-1]):
        found = proper(users, replace(known, folder=tmp_path / str(len(users))), config=SMALL)
        for user in users:
            one, two = user_of(found, user.user_id), user_of(made, user.user_id)
            assert found.users[user.user_id].adapter.fingerprint == made.users[user.user_id].adapter.fingerprint
            assert torch.equal(one.weights, two.weights)
            assert largest_difference(one, two) < 1e-5


def test_somebody_without_an_example_has_her_group_alone(base, known) -> None:
    nobody = User("nobody", (replace(small_targets()[0].history[0], fields={"input": "garden", "output": ""}),))
    people = proper([nobody, small_targets()[0]], known, config=SMALL)
    one = people.users["nobody"]
    assert one.note == "no training example in the history"
    assert (one.updates, one.adapter_bytes) == (0, 4 * SMALL.embedding_size)
    whole = user_of(people, "nobody")
    assert (whole.own, whole.rank) == ({}, 0)
    asked = replace(one, user=replace(nobody, queries=small_targets()[0].queries))
    assert len(predict([asked, people.users["ann"]], base=base, engine=ENGINE).rows) == 4


# who learns from whom -----------------------------------------------------------------------------------------------


def pool_stages(folder: Path, base: BaseModel) -> dict[str, list[float]]:
    """All values that the first two stages trained."""
    paths = [path for part in ("population", "groups") for path in (folder / "proper" / part).glob("*.safetensors")]
    return {
        f"{path.name} {name}": tensor.flatten().tolist()
        for path in paths
        for name, tensor in load_trained(path, base=base)[0].items()
    }


def test_targets_have_no_part_in_the_shared_stages(base, known, made, tmp_path) -> None:
    """Another target's history, or none at all, leaves the first two stages as they are, bit for bit."""
    other = replace(known, folder=tmp_path)
    proper([somebody("zoe", items=6, topic=3)], other, config=SMALL)
    assert pool_stages(tmp_path, base) == pool_stages(known.folder, base)
    assert {name.split()[0] for name in pool_stages(tmp_path, base)} == {"population.safetensors", "groups.safetensors"}


def test_population_and_groups_train_on_all_anchors_rows_for_as_many_tokens_as_the_bank(base, known, made) -> None:
    bank = known.need_bank()
    pool = {user.user_id: user for user in small_pool()}
    of_anchor = [user_rows(base.tokens, OWN, pool[name], train=TRAIN, prompts=PROMPTS).rows for name in bank.anchor_ids]
    plain = [row for rows in of_anchor for row in rows]
    rows = [replace(row, person=place) for place, found in enumerate(of_anchor) for row in found]
    tokens = sum(anchor.tokens for anchor in bank.anchors)
    found = train_groups(known, SMALL, known.folder / "proper")
    shared = replace(BANK.population_train, rank=2, alpha=4.0, target_modules=FEED_FORWARD)
    per_epoch = math.ceil(len(rows) / shared.batch_size)
    updates = round(tokens / (sum(map(len, rows)) / per_epoch))
    config = replace(shared, epochs=math.ceil(updates / per_epoch), max_updates=updates)
    (population,) = train(base, [TrainJob("population", tuple(plain), config)], engine=ENGINE)
    beneath = population.adapter
    assert found.experts.population.fingerprint() == beneath.fingerprint()
    start = starting_embeddings(bank.active_vectors, 6, seed=config.seed)
    job = TrainJob("groups", tuple(rows), config, frozen=recipe(beneath), kind=GroupExperts(SMALL, start))
    (groups,) = train(base, [job], engine=ENGINE)
    for name, factors in found.experts.modules.items():
        assert torch.equal(factors.A, groups.tensors[f"{name}.A"])
        assert torch.equal(factors.B, groups.tensors[f"{name}.B"])
        assert float(factors.B.abs().max()) > 0
    assert list(found.embeddings) == list(bank.anchor_ids)
    trained = torch.stack(list(found.embeddings.values()))
    assert torch.equal(trained, groups.tensors["embeddings"])
    assert not torch.equal(trained, start.float())


def test_a_target_starts_from_her_nearest_anchors(base, known, made) -> None:
    """Her embedding is their mean, weighed by similarity; the router makes weights of it."""
    groups = train_groups(known, SMALL, known.folder / "proper")
    first, second = known.need_bank().anchor_ids[:2]
    match = Match("ann", (first, second), (0.6, 0.2), (0.75, 0.25))
    embedding = 0.75 * groups.embeddings[first].double() + 0.25 * groups.embeddings[second].double()
    logits = [float(row @ embedding) for row in groups.router.double()]
    powers = [math.exp(value + float(offset)) for value, offset in zip(logits, groups.offset, strict=True)]
    wanted = [power / sum(powers) for power in powers]
    assert groups.weights(match, SMALL).tolist() == pytest.approx(wanted, abs=1e-12)
    top = groups.weights(match, replace(SMALL, user_router="top-1")).tolist()
    assert sorted(top) == [0.0, 0.0, 1.0]
    assert top.index(1.0) == wanted.index(max(wanted))
    uniform = replace(SMALL, group_router="uniform")
    assert groups.weights(match, uniform).tolist() == pytest.approx([1 / 3] * 3)


def test_random_anchors_and_other_merge_weights_are_not_hers(base, known, made) -> None:
    """What is asked of the merge does not change who is nearest here."""
    asked = replace(known, match=replace(known.match, anchors="random"), merge=replace(known.merge, weights="uniform"))
    for name, one in proper(small_targets(), asked, config=SMALL).users.items():
        assert one.adapter.fingerprint == made.users[name].adapter.fingerprint


def test_starting_embeddings_tell_what_sets_people_apart() -> None:
    """A part that all share leaves no trace; the projection keeps angles roughly, and the scale."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 256, generator=generator)
    found = starting_embeddings(vectors, 64, seed=1)
    assert torch.allclose(found, starting_embeddings(vectors + 7.0 * vectors[0], 64, seed=1), atol=1e-4)
    assert not torch.equal(found, starting_embeddings(vectors, 64, seed=2))
    assert float(found.std()) == pytest.approx(1.0, abs=0.1)
    assert starting_embeddings(vectors[:1], 64, seed=1).eq(0).all()  # alone, nobody differs from the mean


# settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"group_router": "uniform"},
        {"user_router": "group"},
        {"user_router": "top-1"},
        {"group_router": "uniform", "user_router": "group"},
        {"experts": 1},
        {"target_modules": ("up_proj",)},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_parts_can_be_left_out(base, known, made, changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    found = proper(small_targets(), known, config=config, name=f"proper-{'-'.join(map(str, changes.values()))}")
    assert all(math.isfinite(row.nll or 0.0) for row in answers_of(found, base))
    for name, one in found.users.items():
        assert one.adapter.fingerprint != made.users[name].adapter.fingerprint
        whole, shapes = user_of(found, name), base.shapes(config.target_modules)
        assert set(whole.own) == set(shapes)
        learned = config.user_router == "lora-aware"
        assert all((factors.V.abs().max() > 0) == (learned and config.experts > 1) for factors in whole.own.values())
        if not learned:
            fixed = torch.softmax(next(iter(whole.own.values())).c, dim=0)
            assert fixed.tolist() == pytest.approx(whole.weights.tolist())
        factors = sum(ADAPT.rank * (d_out + d_in) for d_out, d_in in shapes.values())
        routers = len(shapes) * config.experts * (ADAPT.rank + 1) if learned else 0
        embedding = 6 if config.group_router == "learned" else 0
        assert one.adapter_bytes == 4 * (factors + routers + embedding)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"experts": 0}, "experts is 0; it must be 1 or more"),
        ({"rank": -1}, "rank is -1"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"diversity": -0.1}, "diversity is -0.1; it must be 0 or more"),
        ({"balance": math.nan}, "balance is nan"),
        ({"group_router": "none"}, "choose one of learned, uniform"),
        ({"user_router": "soft"}, "choose one of lora-aware, group, top-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        replace(PROPER, **changes)


# refusals -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_before_anything_is_trained(known, tmp_path) -> None:
    here = replace(known, folder=tmp_path / "none")
    with pytest.raises(BankError, match="no bank was given"):
        proper(small_targets(), replace(here, bank=None), config=SMALL)
    with pytest.raises(DataError, match="anchors are not in the pool"):
        proper(small_targets(), replace(here, pool=small_pool()[:2]), config=SMALL)
    with pytest.raises(DataError, match="are anchors of the bank"):
        proper([next(user for user in small_pool() if user.user_id == known.need_bank().anchor_ids[0])], here)
    with pytest.raises(DataError, match="no history"):
        proper([User("new", ())], here, config=SMALL)
    with pytest.raises(ConfigError, match="no linear layer of this model is called fc1"):
        proper(small_targets(), here, config=replace(SMALL, target_modules=("fc1",)))
    assert not list((tmp_path / "none").rglob("*.safetensors"))


def test_groups_that_diverge_are_refused(known, tmp_path) -> None:
    bank = known.need_bank()
    wild = replace(bank, config=replace(bank.config, population_train=replace(TRAIN, lr=1e30)))
    with pytest.raises(AdapterError, match="population adapter diverged"):
        proper(small_targets(), replace(known, bank=wild, folder=tmp_path), config=SMALL)
    with pytest.raises(AdapterError, match="group experts diverged"):
        proper(small_targets(), replace(known, folder=tmp_path), config=replace(SMALL, diversity=1e30))


def test_rows_of_another_person_are_another_training(base, known, tmp_path) -> None:
    """Whose a row is decides the experts' weights, so a stored training of other people is not read back."""
    rows = random_rows(1, 4, longest=10)
    start = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double()
    population = train_groups(known, SMALL, known.folder / "proper").experts.population
    config = replace(TRAIN, target_modules=FEED_FORWARD)
    prints = set()
    for people in ((0, 0, 1, 1), (0, 1, 0, 1)):
        told = tuple(replace(row, person=person) for row, person in zip(rows, people, strict=True))
        job = TrainJob("groups", told, config, frozen=recipe(population), kind=GroupExperts(SMALL, start))
        prints.add(train_and_store(base, [job], tmp_path, engine=ENGINE).adapters["groups"].note.fingerprint)
    assert len(prints) == 2


def test_weights_of_the_router_are_those_of_its_formula() -> None:
    """The stage that trains and the one that serves read the same three tensors."""
    embeddings, router, offset = torch.randn(3, 6), torch.randn(4, 6), torch.randn(4)
    alone = torch.stack([group_weights(one, router, offset) for one in embeddings])
    assert torch.allclose(group_weights(embeddings, router, offset), alone)
