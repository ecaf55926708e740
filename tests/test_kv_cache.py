"""Keys and values with room are those of the library's growing cache, however often the room runs out."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from helpers import tiny_base
from mta.kv_cache import RoomyCache

PIECES = (3, 1, 1, 4, 1)
"""Tokens that come at once."""


@pytest.mark.parametrize("room", [0, 1, 2, 50])
def test_it_holds_what_a_growing_cache_holds(room: int) -> None:
    base = tiny_base()
    ids = torch.randint(3, 250, (2, sum(PIECES)), generator=torch.Generator().manual_seed(1))
    roomy, growing = RoomyCache(room), DynamicCache()
    with torch.no_grad():
        for piece in ids.split(PIECES, dim=1):
            mine, theirs = (
                base.model(input_ids=piece, past_key_values=cache, use_cache=True).logits for cache in (roomy, growing)
            )
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(roomy.layers, growing.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_a_copy_goes_on_alone() -> None:
    base = tiny_base()
    ids = torch.arange(10, 16)[None]
    cache = RoomyCache(room=8)
    with torch.no_grad():
        for piece in (ids[:, :4], ids[:, 4:]):
            base.model(input_ids=piece, past_key_values=cache, use_cache=True)
        before = cache.layers[0].keys.clone()
        base.model(input_ids=ids[:, :2], past_key_values=copy.deepcopy(cache), use_cache=True)
    assert cache.get_seq_length() == 6
    assert torch.equal(cache.layers[0].keys, before)
