"""Rows that join and leave a running batch answer what they answer alone."""

from __future__ import annotations

import pytest
import torch

from helpers import random_adapter, random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig
from mta.generation import Request, generate
from mta.packing import TokenRow
from mta.serving.decoding import Row, RunningBatch, Sampling, cache_tokens, nucleus

BASE = tiny_base()
NEW = 7


def rows(count: int = 6, **options: object) -> list[Row]:
    adapters = [None, *(random_adapter(BASE, ALL_LINEAR, seed=seed, size=0.4) for seed in (1, 2))]
    prompts = random_rows(5, count)
    return [Row(row.prompt, adapters[place % 3], NEW, **options) for place, row in enumerate(prompts)]  # type: ignore[arg-type]


def texts(done: list[Row]) -> list[str]:
    return [BASE.tokens.decode([token for token in row.made if token not in BASE.end_ids]) for row in done]


def alone(of: list[Row]) -> list[str]:
    engine = EngineConfig(predict_tokens_per_batch=1)
    requests = [Request(TokenRow(row.prompt, ()), row.adapter) for row in of]
    return generate(BASE, requests, max_new_tokens=NEW, engine=engine)


def test_rows_that_come_and_go_answer_as_alone() -> None:
    asked = rows()
    batch = RunningBatch(BASE)
    batch.join(asked[:2])
    batch.step()
    batch.join(asked[2:5])
    batch.step()
    batch.leave([asked[3]])
    batch.join(asked[5:])
    while batch.rows:
        batch.step()
    done = [row for row in asked if row is not asked[3]]
    assert texts(done) == alone(done)
    assert len(asked[3].made) == 1
    linears = [module for module in BASE.model.modules() if isinstance(module, torch.nn.Linear)]
    assert not any("forward" in vars(module) for module in linears), "the model is as it was"


def test_prompts_of_one_token_join_anybody() -> None:
    single = Row((5,), None, NEW)
    batch = RunningBatch(BASE)
    batch.join([single])
    batch.join(rows(2))
    while batch.rows:
        batch.step()
    assert texts([single]) == alone([single])


def test_a_seed_draws_the_same_in_any_company() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    first = rows(1, sampling=sampling)[0]
    batch = RunningBatch(BASE)
    batch.join([first])
    while batch.rows:
        batch.step()
    second = rows(1, sampling=sampling)[0]
    other = Row(first.prompt, None, NEW, Sampling(temperature=1.0, seed=4))
    batch.join([other, second])
    while batch.rows:
        batch.step()
    assert first.made == second.made
    assert first.made != other.made


@pytest.mark.parametrize("sampling", [Sampling(temperature=5e-324), Sampling(temperature=2, top_p=5e-324)])
def test_the_least_randomness_is_none(sampling: Sampling) -> None:
    asked = rows(3, sampling=sampling)
    batch = RunningBatch(BASE)
    batch.join(asked)
    while batch.rows:
        batch.step()
    assert texts(asked) == alone(asked)


def test_the_nucleus_holds_the_likeliest_tokens_that_reach_the_share() -> None:
    shares = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert nucleus(shares, 0.65).tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert nucleus(shares, 1.0) is shares
    assert nucleus(shares, 1e-9).tolist() == pytest.approx([0, 0.4, 0, 0])


def test_the_cache_is_counted_with_its_padding() -> None:
    assert cache_tokens([Row((1, 2), None, 3), Row((1,), None, 9)]) == 20
    assert cache_tokens([]) == 0
