"""Attach a stack of adapters to a model for the length of a block, and take it off again without a trace.

The base weights are never written: inside the block each target linear's forward is the stack's, which reads the weight
and adds its delta. Leaving the block puts the layer's own forward back, so that outputs are bit for bit what they were.

Example:
    >>> with attached(model, stack):
    ...     logits = model(input_ids).logits
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from mta.errors import AdapterError, ConfigError
from mta.lora.stacked import Stack


def linear_shapes(model: nn.Module, target_modules: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Find the linear layers whose last name part is a target.

    Args:
        model: any decoder with `nn.Linear` projections; its output head is never a target.
        target_modules: for example ("q_proj", "v_proj").

    Returns:
        Module name -> (d_out, d_in), in model order.

    Raises:
        ConfigError: a target matches no linear layer; the message lists the names this model has.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inner = {name: module for name, module in linears.items() if "." in name and not name.endswith("lm_head")}
    present = {name.rsplit(".", 1)[-1] for name in inner}
    missing = [target for target in target_modules if target not in present]
    if missing:
        raise ConfigError(
            f"no linear layer of this model is called {', '.join(missing)}; it has {', '.join(sorted(present))}"
        )
    wanted = set(target_modules)
    return {
        name: (module.out_features, module.in_features)
        for name, module in inner.items()
        if name.rsplit(".", 1)[-1] in wanted
    }


@contextmanager
def attached(model: nn.Module, stack: Stack) -> Iterator[None]:
    """Add the stack's deltas to the model's target linears inside the block.

    Raises:
        AdapterError: the stack names a module the model does not have.
    """
    changed: list[nn.Linear] = []
    try:
        for name in stack.module_names:
            linear = _linear(model, name)
            linear.forward = partial(_forward, stack, name, linear)  # type: ignore[method-assign]
            changed.append(linear)
        yield
    finally:
        for linear in changed:
            del linear.forward


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(
            f"the adapter has a module {name} that this base model does not have; use the base model it was trained on"
        ) from error
    if not isinstance(module, nn.Linear) or "forward" in vars(module):
        raise AdapterError(
            f"module {name} of the base model is not a plain linear layer, or adapters are attached to it already; "
            "attach one stack at a time to the model as it was loaded"
        )
    return module


def _forward(stack: Stack, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
    return stack.linear(name, x, linear.weight, linear.bias)
