"""Settings: every field documented, checked, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta import config as module
from mta.config import (
    QUERY_VALUE,
    AnchorConfig,
    BankConfig,
    EngineConfig,
    MatchConfig,
    MergeConfig,
    PromptConfig,
    TrainConfig,
    changed_settings,
    field_help,
    from_dict,
    to_dict,
)
from mta.errors import ConfigError
from mta.evaluation.run_config import RunConfig
from mta.presets import PRESETS, default_preset, find_preset

CONFIGS = [PromptConfig, AnchorConfig, TrainConfig, MatchConfig, MergeConfig, BankConfig, EngineConfig, RunConfig]


def test_no_config_is_forgotten_here() -> None:
    found = {value for value in vars(module).values() if dataclasses.is_dataclass(value)}
    assert found == set(CONFIGS) - {RunConfig}


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_says_what_it_is(cls: type) -> None:
    for field in dataclasses.fields(cls):
        text = field_help(cls, field.name)
        assert text.endswith(".")
        assert len(text.split()) >= 2
        assert "\n" not in text


@pytest.mark.parametrize("cls", CONFIGS)
def test_configs_are_frozen_and_by_keyword(cls: type) -> None:
    values = {"task_id": "own", "base": "tiny-random"} if cls is RunConfig else {}
    made = cls(**values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1
    with pytest.raises(TypeError):
        cls("positional")


# JSON -------------------------------------------------------------------------------------------------------------


def through_json(value: object) -> object:
    return from_dict(type(value), json.loads(json.dumps(to_dict(value))))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task_id", ["lamp-1", "lamp-4", "own"])
def test_presets_survive_json(preset: str, task_id: str) -> None:
    found = find_preset(preset, task_id)
    for part in (found.bank, found.adapt, found.merge):
        assert through_json(part) == part
    run = RunConfig(task_id=task_id, base="x", bank=found.bank, adapt=found.adapt, methods=("mta", "base"))
    assert through_json(run) == run


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-4", "own"])
def test_the_small_preset_is_what_pool_users_chose(task_id: str) -> None:
    """As docs/results/small_preset.md says."""
    found = find_preset("small", task_id)
    assert (found.bank.train.lr, found.bank.train.epochs, found.bank.train.batch_size) == (1e-3, 3, 4)
    assert (found.adapt.lr, found.adapt.epochs, found.adapt.batch_size, found.adapt.rank) == (1e-3, 3, 2, 4)
    assert (found.bank.population_train.lr, found.bank.population_train.batch_size) == (5e-4, 8)
    assert (found.merge, found.answers, found.method) == (MergeConfig(), "official", "mta")


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-4", "own"])
def test_what_is_recommended_is_what_pool_users_chose(task_id: str) -> None:
    """As docs/personalization.md says."""
    found, small = find_preset("recommended", task_id), find_preset("small", task_id)
    assert found.bank.population_beneath
    assert (found.bank.train.lr, found.bank.train.held_out_share, found.bank.train.max_items) == (5e-4, 0.2, 20)
    assert (found.adapt, found.merge, found.method) == (small.adapt, small.merge, "mta-blended+pooled")


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-4", "own"])
def test_large_models_get_the_papers_learning_rates(task_id: str) -> None:
    found, paper = find_preset(default_preset(8_000_000_000), task_id), find_preset("paper", task_id)
    rates = (found.bank.train.lr, found.bank.population_train.lr, found.adapt.lr)
    assert rates == (paper.bank.train.lr, paper.bank.train.lr, paper.adapt.lr)
    assert found.bank.population_beneath
    assert found.method == find_preset(default_preset(135_000_000), task_id).method


def test_the_released_preset_does_what_the_scripts_do_and_the_paper_preset_what_the_paper_says() -> None:
    released, paper = find_preset("released", "lamp-1"), find_preset("paper", "lamp-1")
    assert (released.merge.mode, released.merge.weights, released.bank.match.document) == (
        "linear", "inverted", "first512",
    )  # fmt: skip
    assert (released.adapt.epochs, released.adapt.lr, released.answers) == (1, 5e-5, "released")
    assert (released.bank.train.drop_last, paper.bank.train.drop_last) == (True, False)
    assert (released.bank.prompts.input_words, released.bank.prompts.max_tokens) == (368, 8192)
    assert (paper.merge.mode, paper.merge.weights, paper.answers) == ("cat", "similarity", "official")
    assert (paper.adapt.epochs, paper.adapt.lr, paper.adapt.rank) == (2, 5e-5, 4)


@given(
    st.builds(
        TrainConfig,
        rank=st.integers(1, 64),
        alpha=st.floats(0.1, 64),
        target_modules=st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1).map(tuple),
        lr=st.floats(1e-8, 1),
        schedule=st.sampled_from(["cosine", "linear", "constant"]),
        train_a=st.booleans(),
        held_out_share=st.floats(0, 0.9),
        max_items=st.integers(0, 50),
    )
)
def test_any_settings_survive_json(train: TrainConfig) -> None:
    bank = BankConfig(train=train, shared_init=not train.train_a)
    assert through_json(train) == train
    assert through_json(bank) == bank


def test_missing_fields_take_their_defaults_and_whole_numbers_are_numbers() -> None:
    assert from_dict(TrainConfig, {}) == TrainConfig()
    made = from_dict(BankConfig, {"train": {"lr": 1, "target_modules": ["q_proj"]}})
    assert (made.train.lr, made.train.target_modules, made.prompts) == (1.0, ("q_proj",), PromptConfig())
    assert isinstance(made.train.lr, float)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"ranks": 8}, "TrainConfig has no field ranks; fields: rank, alpha, "),
        (BankConfig, {"train": {"ranks": 8}}, "TrainConfig has no field ranks"),
        (TrainConfig, {"rank": "8"}, "TrainConfig.rank is '8'; it must be int"),
        (TrainConfig, {"rank": 8.0}, "TrainConfig.rank is 8.0; it must be int"),
        (TrainConfig, {"rank": True}, "TrainConfig.rank is True; it must be int"),
        (TrainConfig, {"rank": None}, "TrainConfig.rank is None; it must be int"),
        (TrainConfig, {"lr": "fast"}, "TrainConfig.lr is 'fast'; it must be float"),
        (TrainConfig, {"lr": True}, "TrainConfig.lr is True; it must be float"),
        (TrainConfig, {"train_a": 1}, "TrainConfig.train_a is 1; it must be bool"),
        (TrainConfig, {"target_modules": "q_proj"}, "TrainConfig.target_modules is 'q_proj'; it must be tuple"),
        (TrainConfig, {"target_modules": [1, 2]}, "TrainConfig.target_modules[0] is 1; it must be str"),
        (TrainConfig, {"lr": 10**400}, "; it must be float"),
        (TrainConfig, [], "TrainConfig is []; it must be an object"),
        (BankConfig, {"train": 8}, "BankConfig.train is 8; it must be TrainConfig"),
        (BankConfig, {"train": []}, "BankConfig.train is []; it must be TrainConfig"),
    ],
)
def test_wrong_json_is_refused_with_what_it_must_be(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values)
    assert message in str(caught.value)


# ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name", "bad", "good"),
    [
        (PromptConfig, "history_k", [-1], [0, 5]),
        (PromptConfig, "history_words", [0, -3], [1]),
        (PromptConfig, "input_words", [0], [1]),
        (PromptConfig, "max_tokens", [31, 0, -1], [32]),
        (PromptConfig, "template", ["", "Chat", "none"], ["auto", "chat", "plain"]),
        (AnchorConfig, "bank_size", [0, -1], [1]),
        (AnchorConfig, "min_history", [-1], [0]),
        (AnchorConfig, "n_init", [0], [1]),
        (AnchorConfig, "max_iter", [0, -1], [1]),
        (AnchorConfig, "seed", [-1, 2**32], [0, 2**32 - 1]),
        (TrainConfig, "rank", [0, -1], [1]),
        (TrainConfig, "alpha", [0.0, -1.0, math.nan, math.inf], [0.5]),
        (TrainConfig, "target_modules", [(), ("",), (1, 2), "q_proj", ["q_proj"]], [("q_proj",)]),
        (TrainConfig, "lr", [0.0, -1e-4, math.nan, math.inf], [1e-9]),
        (TrainConfig, "schedule", ["step", ""], ["cosine", "linear", "constant"]),
        (TrainConfig, "warmup_ratio", [-0.1, 1.0, math.nan], [0.0, 0.99]),
        (TrainConfig, "epochs", [0], [1]),
        (TrainConfig, "batch_size", [0], [1]),
        (TrainConfig, "beta1", [-0.1, 1.0, 2.0, math.nan], [0.0, 0.99]),
        (TrainConfig, "beta2", [-0.1, 1.0, 2.0, math.nan], [0.0, 0.99]),
        (TrainConfig, "eps", [0.0, -1.0, math.nan, math.inf], [1e-12]),
        (TrainConfig, "held_out_share", [-0.1, 1.0, math.nan], [0.0, 0.5]),
        (TrainConfig, "patience", [0], [1]),
        (TrainConfig, "max_updates", [-1], [0, 9]),
        (TrainConfig, "min_updates", [-1], [0, 9]),
        (TrainConfig, "max_items", [-1], [0, 9]),
        (TrainConfig, "clip_norm", [-1.0, math.nan, math.inf], [0.0, 1.0]),
        (TrainConfig, "weight_decay", [-0.1, math.nan, math.inf], [0.0, 0.1]),
        (MatchConfig, "document", ["mean", ""], ["item_mean", "first512"]),
        (MatchConfig, "top_k", [0, -1], [1]),
        (MergeConfig, "mode", ["exact", ""], ["cat", "linear"]),
        (MergeConfig, "scale", [math.nan, math.inf, -math.inf], [0.0, 1.0, -0.5]),
        (EngineConfig, "slots", [0], [1]),
        (EngineConfig, "tokens_per_batch", [0], [1]),
        (EngineConfig, "predict_tokens_per_batch", [0], [1]),
        (EngineConfig, "checkpoint_every_s", [-1.0, math.nan, math.inf], [0.0, 1e9]),
    ],
)
def test_values_out_of_range_are_refused_when_the_config_is_made(cls: type, name: str, bad: list, good: list) -> None:
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{name} is "):
            cls(**{name: value})
    for value in good:
        assert getattr(cls(**{name: value}), name) == value


FLOATS = [(cls, name) for cls in CONFIGS for name, hint in get_type_hints(cls).items() if hint is float]


@pytest.mark.parametrize(("cls", "name"), FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_field_takes_what_is_no_number(cls: type, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        cls(**{name: value})


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_updates is 9, above max_updates 5"):
        TrainConfig(min_updates=9, max_updates=5)
    assert TrainConfig(min_updates=5, max_updates=5).scaling == 2.0
    assert TrainConfig(rank=4, alpha=2.0).scaling == 0.5


def test_a_population_beneath_has_no_targets_that_its_anchors_lack() -> None:
    few, many = TrainConfig(target_modules=QUERY_VALUE), TrainConfig()
    with pytest.raises(
        ConfigError, match=r"population_train\.target_modules has .*up_proj, which train.target_modules"
    ):
        BankConfig(train=few, population_train=many, population_beneath=True)
    BankConfig(train=few, population_train=many)
    BankConfig(train=many, population_train=few, population_beneath=True)


def test_changed_settings_are_named_by_their_place() -> None:
    before = to_dict(BankConfig())
    now = to_dict(BankConfig(train=TrainConfig(lr=3e-4), shared_init=False))
    assert changed_settings(before, before) == []
    assert sorted(changed_settings(before, now)) == ["shared_init True -> False", "train.lr 0.0001 -> 0.0003"]
    assert changed_settings({"a": 1}, {"b": {"c": 2}}) == ["a 1 -> None", "b None -> {'c': 2}"]
