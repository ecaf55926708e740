"""Other ways to answer for many users whose adapters differ, each giving the answers of the engine.

- `PeftNames`: one PEFT adapter a user, chosen row by row in one batch (`adapter_names`).
- `merge_per_user`: each user's adapter added to the weights, her question answered alone, the weights restored.
- `PolyLora`: the package polylora (`pip install --no-deps polylora`), whose layers take each row's adapter from slots;
  on a CPU its own reference path, which goes row by row. It is written for rows padded on the right and single forward
  passes; here its layers are told that all of a row counts, so that they work in `generate` as well.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import peft
import torch

from mta.base_model import BaseModel
from mta.generation import Request
from mta.lora.adapter import Adapter, AdapterSum
from mta.packing import TokenRow, left_pad


def complete(base: BaseModel, model: Any, rows: Sequence[TokenRow], new_tokens: int, **others: Any) -> list[str]:
    """Answer a batch with the generate of transformers."""
    batch = left_pad([row.prompt for row in rows], pad_id=base.pad_id, device=base.device)
    with torch.no_grad():
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=new_tokens,
            pad_token_id=base.pad_id,
            **others,
        )
    return [base.tokens.decode(ids) for ids in output[:, batch.input_ids.shape[1] :].tolist()]


def whole(request: Request) -> Adapter:
    """Return a request's adapter as one."""
    if not isinstance(request.adapter, AdapterSum):
        raise TypeError(f"got {type(request.adapter).__name__}, wanted AdapterSum")
    return request.adapter.whole()


def merge_per_user(base: BaseModel, requests: Sequence[Request], new_tokens: int) -> list[str]:
    """Answer each user alone, with the adapter in the weights."""
    answers = []
    for request in requests:
        deltas = whole(request)
        weights = {name: base.model.get_submodule(name).weight for name in deltas.modules}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data += deltas.delta(name).to(weight)
        answers += complete(base, base.model, [request.row], new_tokens)
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    return answers


class PeftNames:
    """A PEFT model with an adapter for each user."""

    def __init__(self, base: BaseModel, requests: Sequence[Request], targets: Sequence[str]) -> None:
        self.base, self.requests = base, requests
        rank = next(iter(whole(requests[0]).modules.values())).A.shape[0]
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
        self.names = [f"user{number}" for number in range(len(requests))]
        model = peft.get_peft_model(base.model, config, adapter_name=self.names[0])
        for name in self.names[1:]:
            model.add_adapter(name, config)
        layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
        for name, request in zip(self.names, requests, strict=True):
            for module, factors in whole(request).modules.items():
                layers[module].lora_A[name].weight.data.copy_(factors.A)
                layers[module].lora_B[name].weight.data.copy_(factors.B)
        self.model = model.to(base.dtype).eval()

    def __call__(self, new_tokens: int) -> list[str]:
        """Answer all users in one batch."""
        rows = [request.row for request in self.requests]
        return complete(self.base, self.model, rows, new_tokens, adapter_names=self.names)

    def close(self) -> None:
        """Take the adapters out of the base model again."""
        self.model.unload()


def has_polylora() -> bool:
    """Tell whether polylora is installed."""
    return importlib.util.find_spec("polylora") is not None


class PolyLora:
    """A model whose layers are polylora's, with an adapter for each user."""

    def __init__(self, base: BaseModel, requests: Sequence[Request], targets: Sequence[str]) -> None:
        polylora = importlib.import_module("polylora")
        self.in_context = importlib.import_module("polylora.context").use_lora_context
        self.base, self.requests = base, requests
        self.names = [f"user{number}" for number in range(len(requests))]
        rank = next(iter(whole(requests[0]).modules.values())).A.shape[0]
        settings = polylora.PolyLoraConfig(max_gpu_adapters=len(requests), max_rank=rank, target_modules=list(targets))
        self.layers = {name: base.model.get_submodule(name) for name in whole(requests[0]).modules}
        self.model = polylora.PolyLoraModel(base.model, settings).eval()
        for name, request in zip(self.names, requests, strict=True):
            tensors: dict[str, torch.Tensor] = {}
            for module, factors in whole(request).modules.items():
                tensors |= {f"{module}.lora_A.weight": factors.A, f"{module}.lora_B.weight": factors.B}
            self.model.adapter_store.add_adapter_from_peft_state_dict(
                name, tensors, module_names=self.model.target_module_names, lora_alpha=rank
            )
        self.model.adapter_cache.to(base.device, base.dtype)

    def __call__(self, new_tokens: int) -> list[str]:
        """Answer all users in one batch."""
        rows = [request.row for request in self.requests]
        longest = max(map(len, rows))
        told = self.model.prepare_lora_context(self.names, None, len(rows), longest, self.base.device)
        with self.in_context(told):
            return complete(self.base, self.base.model, rows, new_tokens)

    def close(self) -> None:
        """Put the base model's own layers back."""
        for name, layer in self.layers.items():
            self.base.model.set_submodule(name, layer)
