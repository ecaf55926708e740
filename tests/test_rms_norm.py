"""Normalisation with its own backward pass, against the layers of transformers and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mta.rms_norm import is_rms_norm, rms_norm


def layer(width: int, dtype: torch.dtype) -> LlamaRMSNorm:
    made = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    made.weight.data = torch.linspace(-1.5, 2.0, width).to(dtype)
    return made.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_layer_of_transformers(dtype: torch.dtype) -> None:
    own = layer(24, dtype)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    g = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = rms_norm(x, own.weight, own.variance_epsilon)
    assert torch.equal(y, own(x))
    (mine,), (theirs,) = (torch.autograd.grad(value, x, g) for value in (y, own(x)))
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert (mine.float() - theirs.float()).abs().max() < tolerance * theirs.float().abs().max()


def test_the_gradient_is_that_of_small_differences() -> None:
    """Rows of ones and zeros apart, a row of zeros too; in float32, so that the differences are not too small."""
    weight = torch.tensor([0.5, -2.0, 1.0])
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [30.0, 1.0, -4.0]], requires_grad=True)
    g = torch.tensor([[0.3, 1.0, -0.7], [1.0, 2.0, 3.0], [1.0, -1.0, 0.1]])
    (found,) = torch.autograd.grad(rms_norm(x, weight, 1e-2), x, g)

    def value(at: torch.Tensor) -> float:
        wide = at.double()
        return float((g * weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-2).sqrt()).sum())

    for row in range(3):
        for column in range(3):
            moved = torch.zeros(3, 3, dtype=torch.float64)
            moved[row, column] = 1e-5
            slope = (value(x.detach() + moved) - value(x.detach() - moved)) / 2e-5
            assert float(found[row, column]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("module", [Gemma3RMSNorm(4), nn.RMSNorm(4), nn.LayerNorm(4)])
def test_other_formulas_are_told_apart(module: nn.Module) -> None:
    assert is_rms_norm(layer(4, torch.float32))
    assert not is_rms_norm(module)
