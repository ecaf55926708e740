"""Adapters leave and enter as PEFT folders with the same logits."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers import random_adapter, tiny_base
from mta.config import ALL_LINEAR
from mta.errors import AdapterError, DataError, MtaError, StorageError
from mta.lora.adapter import as_sum, cat, scale
from mta.lora.attach import attached
from mta.lora.frozen_stack import FrozenStack
from mta.lora.peft_format import CONFIG, WEIGHTS, read_peft, write_peft
from permissions import permissions_count

peft = pytest.importorskip("peft")


def logits_with(base, adapter, ids):
    stack = FrozenStack([as_sum(adapter)], base.shapes(ALL_LINEAR), device="cpu", dtype=base.dtype)
    stack.route(torch.tensor([0]))
    with torch.no_grad(), attached(base.model, stack):
        return base.model(input_ids=ids).logits


def test_exported_adapter_gives_the_same_logits_in_peft(tmp_path):
    base = tiny_base(torch.float32)
    anchors = [random_adapter(base, ALL_LINEAR, seed=s, rank=8, size=0.5) for s in range(2)]
    whole = cat([scale(anchors[0], 0.6), scale(anchors[1], 0.4), random_adapter(base, ALL_LINEAR, seed=7, rank=4)])
    ids = torch.arange(5, 60)[None]
    write_peft(whole, tmp_path / "ada", base_model="tiny")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "ada")).eval()
    with torch.no_grad():
        theirs = loaded(input_ids=ids).logits
    ours = logits_with(base, whole, ids)
    assert float((ours - theirs).abs().max()) < 1e-4
    with torch.no_grad():
        assert float((ours - base.model(input_ids=ids).logits).abs().max()) > 1e-2, "the adapter should do something"
    back = read_peft(tmp_path / "ada")
    assert back.fingerprint() == whole.fingerprint()


def save_with_peft(folder, *, dtype=torch.float32, **options):
    """Save a random PEFT adapter of the tiny model; return what the model says with it."""
    model = copy.deepcopy(tiny_base(torch.float32).model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{"r": 6, "lora_alpha": 15, "target_modules": ["q_proj", "down_proj"], **options})
        model = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).to(dtype).float()
        model.save_pretrained(str(folder))
    tensors = load_file(str(folder / WEIGHTS))
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, str(folder / WEIGHTS))
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


IDS = torch.arange(5, 60)[None]
PATTERNS = {  # in the order of the alphabet, in which PEFT saves them: the first that fits counts
    "rank_pattern": {r"layers\.1\..*": 4, "model.layers.0.mlp.down_proj": 5, "q_proj": 3},
    "alpha_pattern": {r"^model.layers.\d.mlp.(up|down)_proj": 2.5, "_proj": 100, "layers.0.self_attn.q_proj": 9},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.[qv]_proj", "exclude_modules": ["x"], "lora_dropout": 0.1, "revision": "main"},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"task_type": "CAUSAL_LM", "init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
        {"use_rslora": True},
        PATTERNS,
        {"use_rslora": True, **PATTERNS},
        {"lora_alpha": 0.3, "dtype": torch.bfloat16},
        {"lora_alpha": 6, "dtype": torch.float16},
    ],
    ids=str,
)
def test_peft_adapter_imports_with_its_scaling(tmp_path, options):
    theirs = save_with_peft(tmp_path, **options)
    base = tiny_base(torch.float32)
    assert float((logits_with(base, read_peft(tmp_path), IDS) - theirs).abs().max()) < 1e-4
    with torch.no_grad():
        assert float((theirs - base.model(input_ids=IDS).logits).abs().max()) > 1e-3, "the adapter should do something"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head.base_layer.weight"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ],
    ids=str,
)
def test_what_an_adapter_cannot_hold_is_refused(tmp_path, options, named):
    save_with_peft(tmp_path, **options)
    with pytest.raises(AdapterError, match=named):
        read_peft(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    left = {key: value for key, value in config.items() if key not in options or key in ("target_modules", "bias")}
    (tmp_path / CONFIG).write_text(json.dumps({**left, "bias": "none"}))
    if {"modules_to_save", "lora_bias", "use_dora", "target_modules", "trainable_token_indices"} & set(options):
        with pytest.raises(AdapterError, match="which plain LoRA does not have"):
            read_peft(tmp_path)


def test_ranks_that_differ_by_module_are_padded(tmp_path):
    base = tiny_base(torch.float32)
    mixed = cat([random_adapter(base, ("q_proj",), seed=1, rank=3), random_adapter(base, ALL_LINEAR, seed=2, rank=2)])
    write_peft(mixed, tmp_path, base_model="tiny")
    ids = torch.arange(5, 30)[None]
    assert torch.allclose(logits_with(base, mixed, ids), logits_with(base, read_peft(tmp_path), ids), atol=1e-6)


def test_damaged_or_foreign_folders_are_refused(tmp_path):
    base = tiny_base(torch.float32)
    with pytest.raises(StorageError, match="adapter_config"):
        read_peft(tmp_path / "nothing")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04")
    (pickled / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="pickle"):
        read_peft(pickled)

    folder = tmp_path / "ada"
    write_peft(random_adapter(base, ALL_LINEAR, seed=1), folder, base_model="tiny")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(AdapterError, match="use_dora"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(AdapterError, match="IA3"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))

    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(str(weights))
    first = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, str(weights))
    with pytest.raises(AdapterError, match=r"NaN|infinity"):
        read_peft(folder)
    save_file({name: t for name, t in tensors.items() if name != first.replace("lora_A", "lora_B")}, str(weights))
    with pytest.raises(AdapterError, match="no matching lora_B"):
        read_peft(folder)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="cut off"):
        read_peft(folder)
    flipped = bytearray(whole)
    flipped[-10] ^= 0xFF
    weights.write_bytes(bytes(flipped))
    with pytest.raises(AdapterError, match="checksum"):
        read_peft(folder)


ODD = [None, True, -1, 0, 2.5, 10**300, 1e999, float("nan"), "", "x", [], ["x"], {}, {"q_proj": None}, {"q_proj": "x"}]
ODD += [{"q_proj": 3}, {"q_proj": True}, {"(": 4}, {"a{99999999999}": 4}, {"(" * 5000 + ")" * 5000: 4}, {"": 2}]
STEM = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"


def write_small(folder, *, tensors=None, **changes):
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **changes}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({A: torch.ones(2, 3), B: torch.ones(5, 2)} if tensors is None else tensors, str(folder / WEIGHTS))
    return folder


@pytest.mark.parametrize("key", ["r", "rank_pattern", "lora_alpha", "alpha_pattern"])
def test_numbers_of_odd_types_are_refused(tmp_path, key):
    alpha, plain = "alpha" in key, "pattern" not in key
    fine = [2.5, 0, -1, 10**300] if alpha else [2]
    wrong = [value for value in ODD if value not in fine] if plain else [True, 5, "x", ["x"]]
    wrong += [] if plain else [{"q_proj": value} for value in (None, True, "x", [2], 1e999, float("nan"))]
    wrong += [{"q_proj": 0}, {"q_proj": 2.0}, {"q_proj": -2}, {"q_proj": 3}] if key == "rank_pattern" else []
    for value in wrong:
        with pytest.raises(AdapterError, match=rf"{key}|{WEIGHTS}"):
            read_peft(write_small(tmp_path, **{key: value}))
    for value in fine[:3]:
        assert read_peft(write_small(tmp_path, **{key: value if plain else {"q_proj": value}})).rank == 2
    for value in [] if plain else [None, {}, {"k_proj": 7}]:
        assert float(read_peft(write_small(tmp_path, **{key: value})).modules[STEM[17:]].B[0, 0]) == 2


def test_the_first_pattern_of_the_file_that_fits_a_module_counts(tmp_path):
    for patterns, weight in (
        ({"q_proj": 6, r".*q_proj": 8}, 3),
        ({r".*q_proj": 8, "q_proj": 6}, 4),
        ({"proj": 6, "model.layers.0": 6, "_proj": 6, "layers": 6, "model.layers.0.self_attn.q_proj.": 6}, 2),
        ({"k_proj|q_proj": 6}, 3),
    ):
        adapter = read_peft(write_small(tmp_path, alpha_pattern=patterns))
        assert adapter.modules[STEM[17:]].B.tolist() == [[weight] * 2] * 5


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 5000 + ")" * 5000])
def test_a_pattern_that_is_no_expression_is_refused(tmp_path, pattern):
    with pytest.raises(AdapterError, match=r"alpha_pattern.* is no regular expression"):
        read_peft(write_small(tmp_path, alpha_pattern={pattern: 2}))


@pytest.mark.parametrize("value", [5, "x", [1], {"a": 1}, True])
@pytest.mark.parametrize("key", ["fan_in_fan_out", "monteclora_config", "an_option_to_come", "bias"])
def test_an_option_nobody_here_knows_must_be_off(tmp_path, key, value):
    with pytest.raises(AdapterError, match=key):
        read_peft(write_small(tmp_path, **{key: value}))
    assert read_peft(write_small(tmp_path, **{key: "none" if key == "bias" else None})).rank == 2


def test_every_option_of_peft_is_known_or_off_by_default(tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    config = {key: value for key, value in config.items() if key not in ("r", "lora_alpha", "target_modules")}
    assert read_peft(write_small(tmp_path, **config)).rank == 2


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, "holds no tensors"),
        ({A: torch.ones(2, 3)}, "no matching lora_B"),
        ({B: torch.ones(5, 2)}, "no matching lora_A"),
        ({A: torch.ones(()), B: torch.ones(5, 2)}, r"A \(\) and B \(5, 2\)"),
        ({A: torch.ones(0, 3), B: torch.ones(5, 0)}, r"A \(0, 3\)"),
        ({A: torch.ones(2, 0), B: torch.ones(5, 2)}, r"A \(2, 0\)"),
        ({A: torch.ones(3, 3), B: torch.ones(5, 3)}, "gives it rank 2"),
        ({A: torch.ones(2, 3), B: torch.ones(5, 3)}, r"B \(5, 3\)"),
        ({A: torch.ones(2, 3, 1, 1), B: torch.ones(5, 2, 1, 1)}, r"A \(2, 3, 1, 1\)"),
        ({A: torch.ones(2, 3).int(), B: torch.ones(5, 2)}, "int32"),
        ({A: torch.ones(2, 3), B: torch.ones(5, 2).to(torch.float8_e4m3fn)}, "float8"),
        ({f"{STEM}.lora_B.bias": torch.ones(5)}, r"lora_B\.bias"),
        ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, r"lm_head\.weight"),
        ({"base_model.model.lora_A.weight": torch.ones(2, 2)}, r"lora_A\.weight"),
        ({f"{STEM}.lora_A.default.weight": torch.ones(2, 3)}, r"lora_A\.default\.weight"),
        ({f"{STEM}.lora_embedding_A": torch.ones(2, 3)}, "lora_embedding_A"),
        ({A.removeprefix("base_model.model."): torch.ones(2, 3)}, "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_tensors_that_are_not_loras_or_do_not_fit_are_refused(tmp_path, tensors, found):
    whole = {A: torch.ones(2, 3), B: torch.ones(5, 2), **tensors}
    incomplete = len(tensors) < 2 and set(tensors) <= {A, B}
    with pytest.raises(AdapterError, match=found):
        read_peft(write_small(tmp_path, tensors=tensors if incomplete else whole))


def test_a_folder_that_may_not_be_searched_is_named(tmp_path):
    folder = write_small(tmp_path / "ada")
    folder.chmod(0o000)
    try:
        with permissions_count(), pytest.raises(StorageError, match=f"cannot read {folder}.*: Permission denied"):
            read_peft(folder)
    finally:
        folder.chmod(0o700)


def test_a_config_that_is_no_object_is_refused(tmp_path):
    write_small(tmp_path)
    for text, error in (("[]", AdapterError), ("null", AdapterError), ('"LORA"', AdapterError), ("{", DataError)):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(error, match=CONFIG):
            read_peft(tmp_path)


NAMES = st.sampled_from([A, B, f"{STEM}.lora_B.bias", f"{STEM}.lora_A", ".lora_A.weight", A[17:], B[17:], "", "x"])
SHAPES = st.sampled_from([(), (2,), (0, 3), (2, 0), (2, 3), (5, 2), (3, 3), (5, 3), (2, 3, 1), (5, 0)])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64])
KEYS = ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"]


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from([*KEYS, "use_dora", "target_modules"]), st.sampled_from(ODD), max_size=3),
    missing=st.sets(st.sampled_from(KEYS), max_size=1),
    tensors=st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=4),
    kept=st.booleans(),
)
def test_a_damaged_folder_is_read_or_refused_and_nothing_else(tmp_path_factory, changes, missing, tensors, kept):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    made = {A: torch.ones(2, 3), B: torch.ones(5, 2)} if kept else {}
    made |= {name: torch.ones(shape).to(dtype) for name, (shape, dtype) in tensors.items()}
    write_small(folder, tensors=made, **changes)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if key not in missing}))
    with contextlib.suppress(MtaError):
        adapter = read_peft(folder)
        assert 2 * len(adapter.modules) == len(made)
        assert all(adapter.delta(name).isfinite().all() for name in adapter.modules)


def test_a_broken_adapter_is_not_written(tmp_path):
    broken = random_adapter(tiny_base(), ("q_proj",), seed=1)
    next(iter(broken.modules.values())).A[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaN or infinity"):
        write_peft(broken, tmp_path / "out", base_model="tiny")
    assert not (tmp_path / "out").exists()
