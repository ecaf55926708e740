"""Normalisation with its own backward pass, against the layers of transformers and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from helpers import tiny_base
from mta.forward import answer_nll
from mta.packing import TokenRow, pack_rows
from mta.rms_norm import lean_norms, rms_norm


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


def test_inside_the_block_the_model_trains_through_it_and_afterwards_as_before() -> None:
    base = tiny_base(torch.float32)
    rows = [TokenRow(tuple(range(3, 3 + n)), (7, 8, 1)) for n in (9, 20)]
    weight = base.model.get_submodule("model.layers.0.self_attn.q_proj").weight.requires_grad_()
    (found,) = torch.autograd.grad(answer_nll(base, pack_rows(rows, device="cpu")).sum(), weight)
    losses = []
    for row in rows:
        logits = base.model(input_ids=torch.tensor([row.prompt + row.answer])).logits[0, -4:-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum"))
    (wanted,) = torch.autograd.grad(sum(losses), weight)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)
    assert float(wanted.abs().max()) > 1e-4
    with lean_norms(base.model):
        y = base.model.model.norm(torch.ones(1, 2, 32, requires_grad=True))
        assert y.grad_fn is not None
        assert "_RmsNorm" in y.grad_fn.name()
    assert not [module for module in base.model.modules() if "forward" in vars(module)]


def test_a_forward_pass_that_others_put_on_a_layer_is_there_again_afterwards() -> None:
    norm = layer(4, torch.float32)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    norm.forward = theirs
    with lean_norms(nn.ModuleList([norm])):
        assert torch.equal(norm(torch.ones(4)), torch.full((4,), 2.0))
    assert norm.forward is theirs


@pytest.mark.parametrize(
    ("module", "dtype", "trains"),
    [
        (Gemma3RMSNorm(4), torch.float32, True),
        (nn.RMSNorm(4), torch.float32, True),
        (layer(4, torch.float64), torch.float64, True),
        (layer(4, torch.float32), torch.float32, False),
    ],
)
def test_what_is_no_plain_norm_and_what_needs_no_gradient_is_left_alone(
    module: nn.Module, dtype: torch.dtype, trains: bool
) -> None:
    x = torch.ones(2, 4, dtype=dtype, requires_grad=trains)
    wanted = module(x)
    with lean_norms(nn.ModuleList([module])):
        found = module(x)
    assert torch.equal(found, wanted)
    assert "_RmsNorm" not in str(found.grad_fn)
