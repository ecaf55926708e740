"""Tiny stand-ins shared by the tests: a random Llama, token rows, users."""

from __future__ import annotations

from functools import partial

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from mta.base_model import BaseModel, wrap_model
from mta.lora.adapter import Adapter, Factors
from mta.packing import TokenRow
from mta.tiny_model import byte_tokenizer, tiny_llama


def tiny_base(dtype: torch.dtype = torch.float64, *, seed: int = 0, width: int = 32) -> BaseModel:
    """A random two-layer Llama with a byte tokenizer, in float64 throughout where that is asked for."""
    model = tiny_llama(seed=seed, width=width).to(dtype)
    if dtype == torch.float64:
        for module in model.modules():  # these two compute in float32 whatever they are given
            if isinstance(module, LlamaRMSNorm):
                module.forward = partial(_norm, module)
            if isinstance(module, LlamaRotaryEmbedding):
                module.forward = partial(_rotary, module.inv_freq.double())
    return wrap_model(model, byte_tokenizer(), name="tiny")


def _rotary(
    frequencies: torch.Tensor, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    angles = position_ids[..., None].to(x) * frequencies.to(x.device)
    twice = torch.cat([angles, angles], dim=-1)
    return twice.cos(), twice.sin()


def _norm(module: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def random_rows(seed: int, count: int, *, longest: int = 30, beginning: int = 0) -> tuple[TokenRow, ...]:
    """Token rows of unequal lengths; all prompts may begin with some tokens in common."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())

    common = tuple(range(20, 20 + beginning))
    return tuple(TokenRow(common + ids(3, longest), ids(1, 6)) for _ in range(count))


def random_adapter(
    base: BaseModel, targets: tuple[str, ...], *, seed: int, rank: int = 4, size: float = 0.1, shared_a: bool = False
) -> Adapter:
    """A finished adapter with random factors; with `shared_a`, A depends on the module only."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(12345)
    modules = {}
    for name, (d_out, d_in) in base.shapes(targets).items():
        A = torch.randn(rank, d_in, generator=common if shared_a else generator, dtype=torch.float64) * size
        B = torch.randn(d_out, rank, generator=generator, dtype=torch.float64) * size
        modules[name] = Factors(A.to(base.dtype), B.to(base.dtype))
    return Adapter(modules)
