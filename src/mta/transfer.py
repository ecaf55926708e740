"""Copies from main memory to a device that the host does not wait for.

Example:
    >>> send(torch.tensor([1, 2, 3]), "cuda")  # goes on while the GPU is still busy with what was asked before
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of main memory to a device.

    A copy to a GPU from ordinary memory would first wait until all earlier work there is done; from page-locked memory
    it takes its place in the queue.
    """
    has_values = type(tensor) is Tensor  # not so while memory is planned, on tensors without values
    if torch.device(device).type == "cuda" and has_values:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def send_integers(values: Sequence[int], device: torch.device | str) -> Tensor:
    """Return integers as (n,) int64 on a device."""
    return send(torch.tensor(values, dtype=torch.int64), device)
