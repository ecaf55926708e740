"""Rows attending in grids, as on a GPU, against rows attending one after the other."""

from __future__ import annotations

import pytest
import torch

from helpers import random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.row_attention import attend_within_rows
from mta.row_grid import attend_in_grids, row_grids
from mta.training import train
from mta.training_plan import TrainJob

SEQUENCES = {
    "one row": ([5], [None]),
    "rows of one length": ([4, 4], [None, None]),
    "rows of several lengths": ([3, 17, 1, 9, 8], [None] * 5),
    "a shared beginning": ([6, 2, 5], [None, 0, 0]),
    "two shared beginnings and rows alone": ([4, 6, 2, 5, 3, 1, 7, 1], [None, None, 1, 1, None, 4, 4, 4]),
}


def query_key_value(tokens: int, *, heads: int = 4, key_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(1, count, tokens, 6, generator=generator, dtype=torch.float64).requires_grad_()

    return [drawn(heads), drawn(key_heads), drawn(key_heads)]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("name", SEQUENCES)
def test_outputs_and_gradients_are_those_of_rows_one_after_the_other(name, scaling, window):
    lengths, before = SEQUENCES[name]
    tensors = query_key_value(sum(lengths))
    wanted, _ = attend_within_rows(
        torch.nn.Module(),
        *tensors,
        None,
        segment_lengths=lengths,
        segments_before=before,
        scaling=scaling,
        sliding_window=window,
    )
    found = attend_in_grids(*tensors, row_grids(lengths, before, device="cpu"), scaling=scaling, window=window)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-12
    towards = torch.randn(wanted.shape, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found, tensors, towards), torch.autograd.grad(wanted, tensors, towards), strict=True
    ):
        assert (mine - theirs).abs().max() < 1e-12


def test_rows_of_similar_length_share_a_grid():
    grids = row_grids([10, 5, 4, 1, 20], [None] * 5, device="cpu")
    assert grids.shapes == ((2, 20), (2, 5), (1, 1)), "10 is half of 20 and goes with it, 4 with 5"
    cells = sum(rows * length for rows, length in grids.shapes)
    assert len(grids.take) == cells <= 2 * 40
    assert torch.equal(grids.take[grids.put], torch.arange(40)), "every token is found in its cell"


def test_users_train_in_grids_as_one_row_after_the_other(monkeypatch):
    """Shared beginnings, several packs, rows of many lengths; float64."""
    base = tiny_base()
    config = TrainConfig(rank=2, epochs=1, batch_size=3, lr=1e-2, target_modules=ALL_LINEAR)
    jobs = [TrainJob(f"user {n}", random_rows(n, 6, beginning=10 * n), config) for n in range(3)]

    def trained() -> dict[str, torch.Tensor]:
        done = train(base, jobs, engine=EngineConfig(slots=2, tokens_per_batch=150))
        return {f"{one.job_id} {name}": value for one in done for name, value in one.tensors.items()}

    wanted = trained()
    monkeypatch.setattr("mta.row_attention.row_grids_on", lambda device: True)
    calls = []

    def watched(*tensors, **more):
        calls.append(more)
        return attend_in_grids(*tensors, **more)

    monkeypatch.setattr("mta.row_attention.attend_in_grids", watched)
    found = trained()
    assert len(calls) >= base.model.config.num_hidden_layers, "attention went through grids"
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() < 1e-11, name
