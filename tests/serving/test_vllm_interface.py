"""The resolver against vLLM's own classes, where vLLM can be imported; neither a GPU nor its kernels are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_server import running
from test_vllm_plugin import made

from mta.serving.server import Server
from mta.vllm_plugin import adapter_name, register

resolver_module = pytest.importorskip("vllm.lora.resolver", reason="vLLM cannot be imported here")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def settings(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = server.people.composition.bank
    assert bank is not None
    values = {
        "STORE": f"sqlite:///{tmp_path / 'users.db'}",
        "BANK": str(bank.folder),
        "BASE": "a-model",
        "FOLDER": str(tmp_path / "made"),
        "RANK": "16",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"MTA_VLLM_{name}", value)


def test_vllm_resolves_and_loads_what_the_server_answers_with(
    server: Server, settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora import lora_model
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.request import LoRARequest

    monkeypatch.setattr(lora_model, "PIN_MEMORY", False)  # needs an accelerator
    made(server, "ada")
    register()
    register()  # vLLM may load plugins more than once
    resolver = resolver_module.LoRAResolverRegistry.get_resolver("mta")
    assert isinstance(resolver, resolver_module.LoRAResolver)
    name = adapter_name("ada", 0)
    request = asyncio.run(resolver.resolve_lora("a-model", name))
    assert isinstance(request, LoRARequest)
    assert request.lora_name == name
    request.lora_int_id = 7  # vLLM numbers what it has resolved itself
    told = PEFTHelper.from_local_dir(request.lora_path, max_position_embeddings=None)
    whole = server.people.served(server.store.find_user(server.gate.tenant(None), "ada"), way="mta").adapter
    assert whole is not None
    assert told.r == whole.whole().rank
    assert told.vllm_lora_scaling_factor == 1
    loaded = LoRAModel.from_local_checkpoint(
        request.lora_path,
        {module.rsplit(".", 1)[-1] for module in whole.modules},
        told,
        lora_model_id=request.lora_int_id,
        device="cpu",
        dtype=torch.float32,
    )
    assert loaded.loras.keys() == set(whole.modules)
    for module, weights in loaded.loras.items():
        assert torch.allclose(weights.lora_b @ weights.lora_a, whole.whole().delta(module), atol=1e-6)


def test_other_names_are_left_to_other_resolvers(server: Server, settings: None) -> None:
    register()
    resolver = resolver_module.LoRAResolverRegistry.get_resolver("mta")
    assert asyncio.run(resolver.resolve_lora("a-model", "some-lora")) is None
    assert asyncio.run(resolver.resolve_lora("another-model", adapter_name("ada", 0))) is None
