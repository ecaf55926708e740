"""OPPU: an adapter per user from scratch, on the user's own rows and nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.adapter_files import load_adapter
from mta.bank_building import build_bank
from mta.base_model import BaseModel
from mta.baselines.methods import METHODS, over_task_adapter
from mta.baselines.oppu import OppuConfig, oppu
from mta.config import ALL_LINEAR, QUERY_VALUE
from mta.errors import ConfigError
from mta.evaluation.predict import examples_of
from mta.lora.adapter import cat
from mta.personalize import Resources
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows
from slow_peft import peft_deltas
from small_world import ADAPT, BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, person, small_pool, small_targets


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def resources(base: BaseModel, folder: Path, *, bank: bool = False) -> Resources:
    built = (
        build_bank(small_pool(), OWN, base, folder / "bank", config=BANK, encoders=ENCODERS, engine=ENGINE)
        if bank
        else None
    )
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, bank=built, pool=small_pool(),
        encoder=ENCODER, engine=ENGINE,
    )  # fmt: skip


def test_each_user_trains_on_the_own_history_only(base: BaseModel, tmp_path: Path) -> None:
    """The authors' script never empties its list of examples, so that user i also trains on users before i."""
    together = METHODS["oppu"](small_targets(), resources(base, tmp_path / "together"))
    for user in reversed(small_targets()):
        METHODS["oppu"]([user], resources(base, tmp_path / user.user_id))
        both = [
            load_adapter(folder / "oppu" / f"{user.user_id}.safetensors")
            for folder in (tmp_path / "together", tmp_path / user.user_id)
        ]
        assert both[0][1]["tokens"] == both[1][1]["tokens"]
        for (name, one), (_, two) in zip(both[0][0].tensors(), both[1][0].tensors(), strict=True):
            assert torch.allclose(one, two, atol=1e-5), name
        steps = ADAPT.epochs * -(-len(user.history) // ADAPT.batch_size)
        assert together.users[user.user_id].updates == steps


@pytest.mark.parametrize(("name", "modules"), [("oppu", ALL_LINEAR), ("oppu-qv", QUERY_VALUE)])
def test_it_is_what_a_plain_loop_with_peft_trains(tmp_path: Path, name: str, modules: tuple[str, ...]) -> None:
    exact = tiny_base(torch.float64)
    user, *_ = small_targets()
    METHODS[name](small_targets(), resources(exact, tmp_path))
    ours, _ = load_adapter(tmp_path / name / f"{user.user_id}.safetensors")
    settings = replace(ADAPT, rank=8, alpha=ADAPT.scaling * 8, target_modules=modules)
    rows = user_rows(exact.tokens, OWN, user, train=settings, prompts=PROMPTS).rows
    expected = peft_deltas(exact, TrainJob(user.user_id, rows, settings))
    assert set(expected) == set(ours.modules)
    for module, delta in expected.items():
        assert float(delta.abs().max()) > 1e-4, "something was learned"
        torch.testing.assert_close(ours.delta(module).double(), delta, atol=1e-7, rtol=1e-5)  # kept in float32


def test_it_is_rank_8_on_all_linear_layers_or_as_published_on_two(base: BaseModel, tmp_path: Path) -> None:
    have = resources(base, tmp_path)
    for name, targets in (("oppu", ALL_LINEAR), ("oppu-qv", QUERY_VALUE)):
        one = METHODS[name](small_targets()[:1], have).users["ann"]
        assert one.adapter is not None
        adapter = one.adapter.make()
        assert adapter.rank == 8
        assert {module.rsplit(".", 1)[-1] for module in adapter.modules} == set(targets)
        assert one.adapter_bytes == 4 * adapter.parameters


def test_the_size_of_the_delta_is_scaled_as_in_adaptation(base: BaseModel, tmp_path: Path) -> None:
    """The adapter is the one that training alone gives, with alpha / r as adaptation has it."""
    user = small_targets()[0]
    METHODS["oppu-qv"]([user], resources(base, tmp_path))
    config = replace(ADAPT, rank=8, alpha=ADAPT.scaling * 8, target_modules=QUERY_VALUE)
    rows = user_rows(base.tokens, OWN, user, train=config, prompts=PROMPTS).rows
    (alone,) = train(base, [TrainJob("ann", rows, config)], engine=ENGINE)
    assert load_adapter(tmp_path / "oppu-qv" / "ann.safetensors")[0].fingerprint() == alone.adapter.fingerprint()


def test_without_history_none_is_shown_in_training_or_answers(base: BaseModel, tmp_path: Path) -> None:
    have = resources(base, tmp_path)
    one = METHODS["oppu-k0"]([person("ann", items=4)], have).users["ann"]
    assert [one.render(example).history for example in examples_of(one)] == [()]
    _, shorter = load_adapter(tmp_path / "oppu-k0" / "ann.safetensors")
    METHODS["oppu"]([person("ann", items=4)], have)
    _, longer = load_adapter(tmp_path / "oppu" / "ann.safetensors")
    assert shorter["tokens"] < longer["tokens"]


def test_the_task_adapter_lies_beneath_and_stays(base: BaseModel, tmp_path: Path) -> None:
    have = resources(base, tmp_path, bank=True)
    config = OppuConfig(rank=2, target_modules=QUERY_VALUE, task_adapt="population")
    made = oppu(small_targets(), have, config=config, name="oppu-task")
    one = made.users["bob"]
    assert min(made.train_seconds, made.shared_seconds) > 0
    shared, _ = load_adapter(tmp_path / "population" / "population.safetensors")
    own, note = load_adapter(tmp_path / "oppu-task" / "bob.safetensors")
    assert one.adapter is not None
    assert one.adapter.make().fingerprint() == cat([shared, own]).fingerprint()
    bare = oppu(small_targets(), have, config=replace(config, task_adapt="none"), name="oppu-bare").users["bob"]
    _, bare_note = load_adapter(tmp_path / "oppu-bare" / "bob.safetensors")
    assert bare.adapter is not None
    assert bare_note["first_loss"] != note["first_loss"], "what lies beneath decides the loss before the first update"


def test_every_row_from_scratch_has_its_like_over_the_task_adapter() -> None:
    assert over_task_adapter(["base", "oppu", "oppu-k0", "oppu-task"]) == ["base", "oppu-task", "oppu-k0-task"]
    with pytest.raises(ConfigError, match="add --method oppu"):
        over_task_adapter(["base", "oppu-qv"])


def test_a_task_adapter_on_other_layers_is_refused(base: BaseModel, tmp_path: Path) -> None:
    have = resources(base, tmp_path, bank=True)
    config = OppuConfig(target_modules=("q_proj",), task_adapt="population")
    with pytest.raises(ConfigError, match="population adapter that changes v_proj, but theirs change q_proj only"):
        oppu(small_targets(), have, config=config, name="narrow")
    assert not (tmp_path / "population").exists()
