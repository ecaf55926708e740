"""The frozen model: loaded from where it is, known again by its weights, refused when it cannot be trusted."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mta.base_model import BaseModel, load_base_model, load_base_shape, model_fingerprint, wrap_model
from mta.config import ALL_LINEAR, PromptConfig
from mta.errors import ConfigError, ModelError, MtaError
from mta.models import BASE_MODELS
from mta.tensor_files import load_tensors
from mta.tiny_model import byte_tokenizer, tiny_llama
from permissions import permissions_count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model saved as any other."""
    path = tmp_path_factory.mktemp("model") / "mine"
    tiny_llama(seed=3, width=16).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def logits(base: BaseModel) -> torch.Tensor:
    ids = torch.tensor([list(b"some text to read")], device=base.device)
    with torch.no_grad():
        return base.model(input_ids=ids).logits


# loading ----------------------------------------------------------------------------------------------------------


def test_the_short_name_gives_the_same_frozen_model_every_time() -> None:
    one, two = load_base_model("tiny-random", device="cpu"), load_base_model("tiny-random", device="cpu")
    assert (one.name, one.fingerprint, str(one.device), one.dtype) == (two.name, two.fingerprint, "cpu", torch.float32)
    assert torch.equal(logits(one), logits(two))
    assert not one.model.training
    assert not any(parameter.requires_grad for parameter in one.model.parameters())


def test_making_the_tiny_model_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_base_model("tiny-random", device="cpu")
    assert torch.equal(torch.rand(3), wanted)


def test_a_folder_is_loaded_with_its_tokenizer(folder: Path) -> None:
    base = load_base_model(str(folder), device="cpu")
    assert base.fingerprint == model_fingerprint(tiny_llama(seed=3, width=16))
    assert base.name == str(folder)
    assert base.tokens.context == 4096
    assert base.tokens.decode(base.tokens.tokenizer("héllo").input_ids) == "héllo"
    assert base.tokens.uses_chat(PromptConfig())
    assert torch.allclose(logits(base), logits(wrap_model(tiny_llama(seed=3, width=16), byte_tokenizer(), name="x")))


@pytest.mark.parametrize(("name", "wanted"), [("float64", torch.float64), ("bfloat16", torch.bfloat16)])
def test_the_number_format_is_the_one_asked_for(folder: Path, name: str, wanted: torch.dtype) -> None:
    for source in ("tiny-random", str(folder)):
        base = load_base_model(source, device="cpu", dtype=name)
        assert base.dtype == wanted
        assert {parameter.dtype for parameter in base.model.parameters()} == {wanted}
    with pytest.raises(ConfigError, match="unknown dtype"):
        load_base_model("tiny-random", device="cpu", dtype="float99")


def test_shapes_of_the_target_modules() -> None:
    base = load_base_model("tiny-random", device="cpu")
    shapes = base.shapes(ALL_LINEAR)
    assert len(shapes) == 2 * 7
    assert shapes["model.layers.1.mlp.up_proj"] == (64, 32)
    assert shapes["model.layers.0.self_attn.k_proj"] == (16, 32), "two of four heads have keys"
    assert set(base.shapes(("q_proj",))) == {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)}
    with pytest.raises(ConfigError, match="is called c_attn; it has down_proj, "):
        base.shapes(("q_proj", "c_attn"))


# refusing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickle_weights_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="pickle"):
        load_base_model(str(tmp_path))
    with pytest.raises(ModelError, match="pickle"):
        load_base_model(str(tmp_path / name))


def test_a_folder_without_weights_is_named_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors; found nothing"):
        load_base_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"found notes\.txt"):
        load_base_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "no-such-model", "./none", "/none/at/all", "a/b/c", "~/none-here", "~no-such-user/x"]
)
def test_a_name_that_leads_nowhere_is_refused_with_the_short_names(name: str) -> None:
    with pytest.raises(ModelError, match="not a folder, not a short name") as caught:
        load_base_model(name)
    assert all(short in str(caught.value) for short in BASE_MODELS)


def test_a_hub_id_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelError, match="cannot load base model nobody/nothing-at-all"):
        load_base_model("nobody/nothing-at-all")


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_folder_is_one_clear_error(folder: Path, tmp_path: Path, damage: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:50])
    with pytest.raises(ModelError, match="cannot load base model"):
        load_base_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("generation_config.json", {"eos_token_id": [1, "two"]}, r"ends answers with .*'two'"),
        ("tokenizer_config.json", {"eos_token": None}, "no eos_token"),
        ("config.json", {"hidden_size": -8}, "cannot load base model"),
    ],
)
def test_settings_that_make_no_model_are_one_clear_error(
    folder: Path, tmp_path: Path, name: str, changes: dict[str, object], said: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**values, **changes}))
    with pytest.raises(ModelError, match=said):
        load_base_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize("changes", [{"hidden_size": -32}, {"hidden_act": None}])
def test_an_architecture_that_cannot_be_is_one_clear_error(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ModelError, match="cannot load base model"):
        load_base_shape(str(tmp_path), device="cpu")


def test_a_folder_that_may_not_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    shutil.copytree(folder, locked / "mine")
    for mode in (0o000, 0o600, 0o100):
        locked.chmod(mode)
        try:
            with permissions_count(), pytest.raises(MtaError, match=r"Permission denied|no base model"):
                load_base_model(str(locked if mode == 0o100 else locked / "mine"))
        finally:
            locked.chmod(0o700)


def test_weights_that_do_not_fill_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """The library would only warn, and start the missing ones at random."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors, _ = load_tensors(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base_model(str(tmp_path))


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match=r"cannot load base model .*cut\.gguf"):
        load_base_model(str(tmp_path / "cut.gguf"))
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert not list((tmp_path / "cache").rglob(".converting-*"))


# fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_weights_whatever_the_number_format() -> None:
    model = tiny_llama()
    prints = {model_fingerprint(copy.deepcopy(model).to(dtype)) for dtype in (torch.float32, torch.float64)}
    prints.add(model_fingerprint(copy.deepcopy(model).bfloat16()))
    assert prints == {model_fingerprint(tiny_llama())}


def test_other_weights_shapes_or_a_fine_tune_have_another_fingerprint() -> None:
    model = tiny_llama()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.v_proj.weight.mul_(1.02)
    others = [tuned, tiny_llama(seed=1), tiny_llama(width=16), tiny_llama(layers=1), tiny_llama(vocabulary=300)]
    assert len({model_fingerprint(other) for other in [model, *others]}) == 6


def test_equal_weights_under_other_settings_are_another_model() -> None:
    prints = {model_fingerprint(tiny_llama())}
    for change in ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rms_norm_eps": 1e-3}):
        other = tiny_llama()
        for name, value in change.items():
            setattr(other.config, name, value)
        prints.add(model_fingerprint(other))
    assert len(prints) == 3


def test_padding_token_falls_back_to_the_end_token() -> None:
    tokenizer = byte_tokenizer()
    assert wrap_model(tiny_llama(), tokenizer, name="x").pad_id == 0
    tokenizer.pad_token = None
    base = wrap_model(tiny_llama(), tokenizer, name="x")
    assert base.pad_id == base.tokens.end_id == 1


def test_the_context_is_the_models() -> None:
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    assert wrap_model(LlamaForCausalLM(config), byte_tokenizer(), name="x").tokens.context == 77
