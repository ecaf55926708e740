"""Layers that keep less for the way back: when a model goes through them, and that they leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from helpers import tiny_base
from mta.forward import answer_nll
from mta.lean_layers import lean_layers
from mta.packing import TokenRow, pack_rows

WIDTH = 4


def norm(dtype: torch.dtype) -> nn.Module:
    made = LlamaRMSNorm(WIDTH, eps=1e-5).to(dtype)
    made.weight.data = torch.linspace(-1.5, 2.0, WIDTH).to(dtype)
    return made


def mlp(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaMLP(LlamaConfig(hidden_size=WIDTH, intermediate_size=6, num_attention_heads=1)).to(dtype)


def steps_of(value: Tensor) -> str:
    """The names of all steps that autograd goes back through."""
    names, ahead = [], [value.grad_fn]
    while ahead:
        step = ahead.pop()
        if step is not None:
            names.append(step.name())
            ahead += [before for before, _ in step.next_functions]
    return " ".join(names)


def test_a_model_trains_through_them_and_is_as_before_afterwards() -> None:
    base = tiny_base(torch.float32)
    rows = [TokenRow(tuple(range(3, 3 + n)), (7, 8, 1)) for n in (9, 20)]
    weight = base.model.get_submodule("model.layers.0.self_attn.q_proj").weight.requires_grad_()
    losses = answer_nll(base, pack_rows(rows, device="cpu"))
    assert "_RmsNorm" in steps_of(losses)
    assert "_GatedProduct" in steps_of(losses)
    (found,) = torch.autograd.grad(losses.sum(), weight)
    plain = []
    for row in rows:
        logits = base.model(input_ids=torch.tensor([row.prompt + row.answer])).logits[0, -4:-1]
        plain.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum"))
    (wanted,) = torch.autograd.grad(sum(plain), weight)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)
    assert float(wanted.abs().max()) > 1e-4
    assert not [module for module in base.model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("make", [norm, mlp])
def test_a_forward_pass_that_others_put_on_a_layer_is_there_again_afterwards(make) -> None:
    layer = make(torch.float32)

    def theirs(x: Tensor) -> Tensor:
        return 2 * x

    layer.forward = theirs
    with lean_layers(nn.ModuleList([layer])):
        assert torch.equal(layer(torch.ones(WIDTH)), torch.full((WIDTH,), 2.0))
    assert layer.forward is theirs


@pytest.mark.parametrize(
    ("layer", "trains"),
    [
        (Gemma3RMSNorm(WIDTH), True),
        (norm(torch.float64), True),
        (mlp(torch.float64), True),
        (norm(torch.float32), False),
        (mlp(torch.float32), False),
    ],
)
def test_other_layers_and_formats_and_what_needs_no_gradient_are_left_alone(layer: nn.Module, trains: bool) -> None:
    x = torch.ones(2, WIDTH, dtype=next(layer.parameters()).dtype, requires_grad=trains)
    wanted = layer(x)
    with lean_layers(nn.ModuleList([layer])):
        found = layer(x)
    assert torch.equal(found, wanted)
    assert "_RmsNorm" not in steps_of(found)
    assert "_GatedProduct" not in steps_of(found)
