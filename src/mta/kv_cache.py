"""Keys and values of a batch with room for what comes next: a token is written behind the others, nothing is copied.

The library's growing cache copies all that is there for every token; with 32 rows of 200 tokens that is a third of a
small model's time. Every layer keeps all tokens, those with a sliding window too: masks say what is seen.

Example:
    >>> cache = RoomyCache(room=64)
    >>> base.model(input_ids=prompt, past_key_values=cache, use_cache=True)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (batch, heads, T, d) each, as views of buffers with room.

    Args:
        room: tokens that may follow before a buffer must be made anew.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens and return those of all, as the library's layers do."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        there = self.get_seq_length()
        if not there:
            self.hold(key_states, value_states)
            return key_states, value_states
        length = there + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < length:
            most = length + self._room
            self._buffers = _with_room(self.keys, most), _with_room(self.values, most)
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        keys[:, :, there:].copy_(key_states)
        values[:, :, there:].copy_(value_states)
        self.keys, self.values = keys, values
        return keys, values

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values in place of what is there."""
        self.keys, self.values, self._buffers = keys, values, None


class RoomyCache(Cache):  # type: ignore[misc]
    """The layers of one batch; see `RoomyLayer`."""

    layers: list[RoomyLayer]

    def __init__(self, room: int) -> None:
        super().__init__(layer_class_to_replicate=partial(RoomyLayer, room))


def _with_room(there: Tensor, length: int) -> Tensor:
    """Copy keys or values to the beginning of a buffer for so many tokens."""
    batch, heads, tokens, width = there.shape
    buffer = torch.empty(batch, heads, length, width, dtype=there.dtype, device=there.device)
    buffer[:, :, :tokens].copy_(there)
    return buffer
