"""Adapters leave and enter as PEFT folders with the same logits."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import random_adapter, tiny_base
from mta.config import ALL_LINEAR
from mta.errors import AdapterError, StorageError
from mta.lora.adapter import as_sum, cat, scale
from mta.lora.attach import attached
from mta.lora.frozen_stack import FrozenStack
from mta.lora.peft_format import read_peft, write_peft

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


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_adapter_imports_with_its_scaling(tmp_path, rslora):
    base = tiny_base(torch.float32)
    config = peft.LoraConfig(r=6, lora_alpha=15, target_modules=["q_proj", "down_proj"], use_rslora=rslora)
    model = peft.get_peft_model(copy.deepcopy(base.model), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(str(tmp_path / "theirs"))
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids).logits
    ours = logits_with(base, read_peft(tmp_path / "theirs"), ids)
    assert float((ours - theirs).abs().max()) < 1e-4


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


def test_a_broken_adapter_is_not_written(tmp_path):
    broken = random_adapter(tiny_base(), ("q_proj",), seed=1)
    next(iter(broken.modules.values())).A[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaN or infinity"):
        write_peft(broken, tmp_path / "out", base_model="tiny")
    assert not (tmp_path / "out").exists()
