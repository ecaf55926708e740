"""Rows in one sequence: each sees itself only, in every architecture that is let in."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from architectures import ARCHITECTURES, SHAPE, make
from mta.errors import ModelError
from mta.row_attention import check_rows_stay_apart, rows_apart, segments

ROWS = [list(range(3, 20)), [5], [9, 9, 4, 7, 30, 2, 11]]


@pytest.fixture(params=["one after the other", "in grids"])
def way(request, monkeypatch) -> str:
    """How rows are told apart: as on a CPU, or as on a GPU."""
    if request.param == "in grids":
        monkeypatch.setattr("mta.row_attention.row_grids_on", lambda device: True)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_give_what_each_gives_alone(name: str) -> None:
    """The model's own attention, one row at a time, is the judge; one row is far longer than the window."""
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ROWS], dim=1)
        with rows_apart(model):
            packed = model(
                input_ids=torch.tensor([[token for row in ROWS for token in row]]),
                position_ids=torch.tensor([[place for row in ROWS for place in range(len(row))]]),
                use_cache=False,
                **segments([len(row) for row in ROWS], [None] * len(ROWS), device=model.device),
            ).logits
    assert torch.allclose(packed, alone, atol=1e-10)
    check_rows_stay_apart(model)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_share_a_beginning_give_what_each_gives_alone(name: str) -> None:
    """The beginning is longer than a window, of the rests one is shorter and one longer than it."""
    model = ARCHITECTURES[name]()
    beginning, rests = list(range(3, 11)), [[5], [9, 9, 4, 7, 30, 2, 11]]
    wanted = []
    with torch.no_grad():
        for rest in rests:
            wanted.append(model(input_ids=torch.tensor([beginning + rest])).logits[:, len(beginning) :])
        with rows_apart(model):
            found = model(
                input_ids=torch.tensor([beginning + rests[0] + rests[1]]),
                position_ids=torch.tensor([[*range(8), *range(8, 9), *range(8, 15)]]),
                use_cache=False,
                **segments([8, 1, 7], [None, 0, 0], device=model.device),
            ).logits
    assert torch.allclose(found[:, 8:], torch.cat(wanted, dim=1), atol=1e-10)


def test_attention_is_put_back_even_after_an_error() -> None:
    model = ARCHITECTURES["llama"]()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), rows_apart(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_a_recurrent_model_is_refused() -> None:
    model = make(MambaForCausalLM, MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="users cannot share a batch"):
        check_rows_stay_apart(model)


def test_attention_with_other_scores_is_refused() -> None:
    model = make(Gemma2ForCausalLM, Gemma2Config(**SHAPE))
    with pytest.raises(ModelError, match="softcap"):
        check_rows_stay_apart(model)
