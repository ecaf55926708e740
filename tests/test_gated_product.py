"""The gated product, against autograd and against the MLPs of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from mta.gated_product import gated_product, is_gated_mlp


def drawn(seed: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "gelu"])
def test_value_and_gradients_are_autograds_to_the_bit(name: str, dtype: torch.dtype) -> None:
    activation = ACT2FN[name]
    gate, up = (drawn(seed, dtype).requires_grad_() for seed in (0, 1))
    mine, theirs = gated_product(activation, gate, up), activation(gate) * up
    assert torch.equal(mine, theirs)
    found, wanted = (torch.autograd.grad(value, (gate, up), drawn(2, dtype)) for value in (mine, theirs))
    assert all(map(torch.equal, found, wanted))
    assert all(bool(gradient.any()) for gradient in found)


def test_the_activated_gate_is_not_kept() -> None:
    gate, up = (drawn(seed, torch.float32).requires_grad_() for seed in (0, 1))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gated_product(nn.functional.silu, gate, up)
    assert [tensor.data_ptr() for tensor in kept] == [gate.data_ptr(), up.data_ptr()]


class ClippedMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (LlamaMLP(LlamaConfig(**SMALL)), True),
        (Qwen3MLP(Qwen3Config(**SMALL)), True),
        (ClippedMLP(LlamaConfig(**SMALL)), False),
        (Phi3MLP(Phi3Config(**SMALL)), False),
        (Gemma3nTextMLP(Gemma3nTextConfig(hidden_size=8, intermediate_size=[12], num_hidden_layers=1)), False),
        (nn.Linear(8, 8), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_mlps_of_this_very_formula_are_recognised(module: nn.Module, wanted: bool) -> None:
    assert is_gated_mlp(module) is wanted
