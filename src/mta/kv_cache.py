"""Keys and values of a batch with room for what comes next: a token is written behind the others, nothing is copied.

The library's growing cache copies all that is there for every token; with 32 rows of 200 tokens that is a third of a
small model's time. Every layer keeps all tokens, those with a sliding window too: masks say what is seen.

Example:
    >>> cache = RoomyCache(room=64)
    >>> base.model(input_ids=prompt, past_key_values=cache, use_cache=True)
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def put(self, rows: Sequence[int], batch: int, width: int, keys: Tensor, values: Tensor) -> None:
        """Take the keys and values of some rows of an empty batch, which end in column `width`; padding is zero.

        Args:
            rows: places in the batch, R.
            batch: rows of the whole batch.
            width: columns that all rows will have.
            keys: (R, heads, t, d)
            values: (R, heads, t, d)
        """
        if self._buffers is None:
            self.lazy_initialization(keys, values)
            shape = (batch, keys.shape[1], width + self._room, keys.shape[3])
            self._buffers = keys.new_zeros(shape), values.new_zeros(shape)
            self.keys, self.values = (buffer[:, :, :width] for buffer in self._buffers)
        for whole, part in ((self.keys, keys), (self.values, values)):
            whole[list(rows), :, width - part.shape[2] :] = part

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values in place of what is there."""
        self.keys, self.values, self._buffers = keys, values, None


class RoomyCache(Cache):  # type: ignore[misc]
    """The layers of one batch; see `RoomyLayer`."""

    layers: list[RoomyLayer]

    def __init__(self, room: int) -> None:
        super().__init__(layer_class_to_replicate=partial(RoomyLayer, room))
        self._room = room

    def part(self, rows: Sequence[int], *, batch: int, width: int) -> Cache:
        """Return what a pass over some rows of an empty batch is to fill; see `RoomyLayer.put`."""
        return _Part(self, rows, batch, width)

    def layer(self, number: int) -> RoomyLayer:
        """Return a layer, made where it is not there yet."""
        while len(self.layers) <= number:
            self.layers.append(RoomyLayer(self._room))
        return self.layers[number]


class _Part(Cache):  # type: ignore[misc]
    """Some rows of a batch on their way into its cache; empty itself."""

    def __init__(self, whole: RoomyCache, rows: Sequence[int], batch: int, width: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._whole, self._place = whole, (rows, batch, width)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the keys and values of a layer on, and return them."""
        self._whole.layer(layer_idx).put(*self._place, key_states, value_states)
        return key_states, value_states


def _with_room(there: Tensor, length: int) -> Tensor:
    """Copy keys or values to the beginning of a buffer for so many tokens."""
    batch, heads, tokens, width = there.shape
    buffer = torch.empty(batch, heads, length, width, dtype=there.dtype, device=there.device)
    buffer[:, :, :tokens].copy_(there)
    return buffer
