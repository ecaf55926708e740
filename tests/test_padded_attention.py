"""Rows padded on the left: each attends to itself only, in every architecture that is let in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from architectures import ARCHITECTURES
from mta.errors import ModelError
from mta.packing import left_pad
from mta.padded_attention import attend_within_padding, without_padding

ROWS = [list(range(3, 20)), [5], [9, 9, 4, 7, 30, 2, 11]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_rows_give_what_each_gives_alone(name: str) -> None:
    model = ARCHITECTURES[name]()
    batch = left_pad(ROWS, pad_id=1, device="cpu")
    with torch.no_grad():
        with without_padding(model):
            found = model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, row_lengths=batch.lengths, use_cache=False
            ).logits
        for row, logits in zip(ROWS, found, strict=True):
            alone = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            assert torch.allclose(logits[-len(row) :], alone, rtol=0, atol=1e-10)


def test_what_is_padding_gives_nothing_and_reaches_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    lengths = [5, 0]
    out, weights = attend_within_padding(nn.Identity(), query, key, value, None, row_lengths=lengths)
    assert weights is None
    assert out.shape == (2, 5, 4, 8)
    assert not out[1].any()
    shorter, _ = attend_within_padding(nn.Identity(), query, key, value, None, row_lengths=[3, 0])
    assert not shorter[0, :2].any()
    assert not torch.allclose(shorter[0, 2:], out[0, 2:]), "two tokens less are seen"


def test_scores_that_an_architecture_changes_are_refused() -> None:
    nothing = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ModelError, match="softcap"):
        attend_within_padding(nn.Identity(), nothing, nothing, nothing, None, row_lengths=[1], softcap=30.0)
