"""Attach a stack of adapters to a model for the length of a block, and take it off again without a trace.

The base weights are never written: inside the block each target linear's forward is the stack's, which reads the weight
and adds its delta. Leaving the block puts the layer's own forward back, so that outputs are bit for bit what they were.

Example:
    >>> with attached(model, stack):
    ...     logits = model(input_ids).logits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from mta.errors import AdapterError, ConfigError
from mta.lora.stacked import GroupingStack, Stack


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
        for names in _groups(stack):
            group = _Group(stack, {name: _linear(model, name) for name in names})
            for name, linear in group.linears.items():
                linear.forward = partial(group.forward, name)  # type: ignore[method-assign]
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


SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Layers of one block that read the same input, by the last part of their names."""


def _groups(stack: Stack) -> list[list[str]]:
    """Return the stack's layers, those that read the same input together where the stack makes use of it."""
    found: dict[tuple[str, object], list[str]] = {}
    for name in stack.module_names:
        block, _, last = name.rpartition(".")
        family = next((place for place, names in enumerate(SAME_INPUT) if last in names), last)
        found.setdefault((block, family if isinstance(stack, GroupingStack) else last), []).append(name)
    return list(found.values())


class _Group:
    """Layers that read the same input: the first one called asks for the outputs of all, which come one by one."""

    def __init__(self, stack: Stack, linears: Mapping[str, nn.Linear]) -> None:
        self.linears = dict(linears)
        self._stack = stack
        self._together = stack if isinstance(stack, GroupingStack) and len(linears) > 1 else None
        self._input: Tensor | None = None
        self._coming: Iterator[tuple[str, Tensor]] = iter(())
        self._outputs: dict[str, Tensor] = {}
        self._missing: set[str] = set()
        """Layers that have not had theirs yet."""

    def forward(self, name: str, x: Tensor) -> Tensor:
        """Return one layer's output."""
        if self._together is None:
            linear = self.linears[name]
            return self._stack.linear(name, x, linear.weight, linear.bias)
        if x is not self._input or name not in self._missing:
            weights = {other: (linear.weight, linear.bias) for other, linear in self.linears.items()}
            self._coming = zip(weights, self._together.linears(x, weights), strict=True)
            self._input, self._outputs, self._missing = x, {}, set(weights)
        while name not in self._outputs:
            self._outputs |= [next(self._coming)]
        self._missing.remove(name)
        if not self._missing:
            self._input, self._coming = None, iter(())
        return self._outputs.pop(name)
