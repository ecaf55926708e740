"""Layers that keep less for the way back, in place of a model's own while a CPU trains through it.

The model is as it was after the block, whatever others have put on its layers before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mta.gated_product import gated_product, is_gated_mlp
from mta.rms_norm import is_rms_norm, rms_norm

Forward = Callable[[Any, Tensor], Tensor]
LEAN = (torch.float32, torch.bfloat16)
"""Input dtypes that gain by it; float64 is for tests, which compare with the model's own."""


def lean_norm(norm: Any, x: Tensor) -> Tensor:
    """Return a normalisation's output, keeping its input only."""
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def lean_mlp(mlp: Any, x: Tensor) -> Tensor:
    """Return a gated MLP's output, without keeping the activated gate."""
    product: Tensor = mlp.down_proj(gated_product(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x)))
    return product


LAYERS: dict[Callable[[nn.Module], bool], Forward] = {
    is_rms_norm: lean_norm,
    is_gated_mlp: lean_mlp,
}
"""What tells a layer -> its forward pass."""


@contextmanager
def lean_layers(model: nn.Module) -> Iterator[None]:
    """Let the model train through `LAYERS` inside the block, where a CPU does it in a number format of `LEAN`."""
    found = [(module, lean) for module in model.modules() for tells, lean in LAYERS.items() if tells(module)]
    before = [module.__dict__.get("forward") for module, _ in found]
    try:
        for module, lean in found:
            module.forward = partial(_forward, lean, module, module.forward)
        yield
    finally:
        for (module, _), forward in zip(found, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _forward(
    lean: Callable[[Any, Tensor], Tensor], module: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    if x.device.type == "cpu" and x.requires_grad and x.dtype in LEAN:
        return lean(module, x)
    return own(x)
