"""Tiny stand-ins shared by the tests: a random Llama, token rows, users."""

from __future__ import annotations

import torch

from mta.base_model import BaseModel, wrap_model
from mta.lora.adapter import Adapter, Factors
from mta.packing import TokenRow
from mta.tiny_model import byte_tokenizer, tiny_llama


def tiny_base(dtype: torch.dtype = torch.float64, *, seed: int = 0, width: int = 32) -> BaseModel:
    """A random two-layer Llama with a byte tokenizer."""
    return wrap_model(tiny_llama(seed=seed, width=width).to(dtype), byte_tokenizer(), name="tiny")


def random_rows(seed: int, count: int, *, longest: int = 30) -> tuple[TokenRow, ...]:
    """Token rows of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())

    return tuple(TokenRow(ids(3, longest), ids(1, 6)) for _ in range(count))


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
