"""Attaching a stack: layers that read the same input are computed together where the stack can, and only there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from mta.errors import AdapterError
from mta.lora.attach import attached


class Block(nn.Module):
    """Layers named as in a decoder; all but the last read the same input, or each its own."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(3, 3, bias=False).double())

    def forward(self, x: Tensor, *, copy: bool = False) -> Tensor:
        inputs = [x.clone() if copy else x for _ in range(3)]
        parts = [layer(one) for layer, one in zip((self.q_proj, self.k_proj, self.v_proj), inputs, strict=True)]
        return self.o_proj(sum(parts))


class Single:
    """Adds one to every layer and writes down what it was asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.module_names = list(names)
        self.asked: list[list[str]] = []

    def linear(self, module: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.asked.append([module])
        return nn.functional.linear(x, weight, bias) + 1


class Grouping(Single):
    def linears(self, x: Tensor, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        self.asked.append(list(weights))
        for weight, bias in weights.values():
            yield nn.functional.linear(x, weight, bias) + 1


ALL = ["0.q_proj", "0.k_proj", "0.v_proj", "0.o_proj"]


def wanted(block: Block, x: Tensor) -> Tensor:
    inner = sum(layer(x) + 1 for layer in (block.q_proj, block.k_proj, block.v_proj))
    return block.o_proj(inner) + 1


@pytest.mark.parametrize(
    ("stack", "copy", "asked"),
    [
        (Single(ALL), False, [[name] for name in ALL]),
        (Grouping(ALL), False, [ALL[:3], ["0.o_proj"]]),
        (Grouping(["0.q_proj", "0.v_proj"]), False, [["0.q_proj", "0.v_proj"]]),
        (Grouping(ALL), True, [ALL[:3], ALL[:3], ALL[:3], ["0.o_proj"]]),
    ],
    ids=["one by one", "together", "two of three", "inputs of their own"],
)
def test_layers_of_one_input_are_asked_for_together(stack: Single, copy: bool, asked: list[list[str]]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Block()), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad(), attached(model, stack):
        found = model[0](x, copy=copy)
        assert stack.asked == asked
        if len(stack.module_names) == 4:
            again = model[0](x, copy=copy)
            assert torch.equal(found, again), "a second pass over the same input is computed anew"
            assert stack.asked == asked * 2
    if len(stack.module_names) == 4:
        assert torch.allclose(found, wanted(model[0], x), atol=1e-12)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_layers_of_one_input_may_be_called_in_any_order() -> None:
    torch.manual_seed(0)
    model, x, stack = nn.Sequential(Block()), torch.randn(2, 3, dtype=torch.float64), Grouping(ALL)
    block = model[0]
    plain = {name: getattr(block, name)(x) for name in ("q_proj", "k_proj", "v_proj")}
    with torch.no_grad(), attached(model, stack):
        for order in (("v_proj", "q_proj", "k_proj"), ("k_proj", "v_proj", "q_proj")):
            for name in order:
                assert torch.equal(getattr(block, name)(x), plain[name] + 1)
    assert stack.asked == [ALL[:3]] * 2


def test_a_layer_that_is_not_there_or_taken_is_refused() -> None:
    model = nn.Sequential(Block())
    with pytest.raises(AdapterError, match="does not have"), attached(model, Single(["0.up_proj"])):
        pass
    with (
        attached(model, Single(["0.q_proj"])),
        pytest.raises(AdapterError, match="attached to it already"),
        attached(model, Single(["0.q_proj"])),
    ):
        pass
