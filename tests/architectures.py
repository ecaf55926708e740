"""Small random models of the architectures that are let in, in float64."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def make(model_class, config) -> torch.nn.Module:
    torch.manual_seed(0)
    return model_class(config).double().eval()


ARCHITECTURES = {
    "llama": lambda: make(LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "mistral, window 4": lambda: make(MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=4)),
    "qwen3": lambda: make(Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
    "gemma3, window 4": lambda: make(
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    ),
}
