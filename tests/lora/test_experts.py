"""Routed experts against one token, one expert, one product at a time; mixed batches against each user alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import random_adapter, random_rows, tiny_base
from mta.base_model import BaseModel
from mta.baselines.proper import FEED_FORWARD
from mta.config import EngineConfig
from mta.errors import AdapterError
from mta.generation import Request, answer_and_score, generate, score_answers
from mta.lora.attach import attached
from mta.lora.experts import (
    ExpertFactors,
    ExpertStack,
    RoutedUser,
    UserFactors,
    group_weights,
    imbalance,
    likeness,
    mix_experts,
    user_factors,
    user_part,
)
from mta.packing import TokenRow
from slow_experts import random_experts, random_user, slow_greedy, slow_model, slow_nll, slow_user

TOGETHER = EngineConfig(predict_tokens_per_batch=400)
ALONE = EngineConfig(predict_tokens_per_batch=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# formulas -----------------------------------------------------------------------------------------------------------


def test_mixed_experts_are_the_weighted_sum_of_each() -> None:
    experts = ExpertFactors(drawn(3, 2, 4, seed=1), drawn(5, 3, 2, seed=2))
    x, weights = drawn(2, 6, 4, seed=3), drawn(2, 6, 3, seed=4)
    found = mix_experts(x, experts, weights)
    for row in range(2):
        for token in range(6):
            parts = [weights[row, token, e] * (experts.B[:, e] @ experts.A[e] @ x[row, token]) for e in range(3)]
            assert torch.allclose(found[row, token], sum(parts), atol=1e-13)


def test_a_user_adds_her_factors_and_weighs_experts_by_what_they_see() -> None:
    own = UserFactors(drawn(2, 4, seed=1), drawn(5, 2, seed=2), drawn(3, 2, seed=3), drawn(3, seed=4))
    x = drawn(6, 4, seed=5)
    delta, weights = user_part(x, own)
    for token in range(6):
        seen = own.A @ x[token]
        assert torch.allclose(delta[token], own.B @ seen, atol=1e-13)
        powers = [math.exp(float(own.V[e] @ seen + own.c[e])) for e in range(3)]
        assert weights[token].tolist() == pytest.approx([power / sum(powers) for power in powers], abs=1e-13)


def test_without_a_router_of_her_own_all_tokens_have_the_same_weights() -> None:
    weights = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    own = user_factors({"m.A": drawn(2, 4), "m.B": drawn(5, 2)}, weights)["m"]
    assert user_part(drawn(6, 4, seed=5), own)[1].tolist() == [[0.5, 0.5, 0.0]] * 6


def test_weights_of_people_by_hand() -> None:
    router = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
    found = group_weights(torch.tensor([[1.0, 9.0], [0.0, 3.0]]), router, torch.tensor([0.0, math.log(3.0)]))
    assert found.flatten().tolist() == pytest.approx([0.4, 0.6, 0.25, 0.75])


def test_people_who_mix_alike_are_alike() -> None:
    """cos((1, 0), (3, 4)) = 0.6, so 0.36 for that pair; (0, 1): 0 and 0.8."""
    people = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert float(likeness(people)) == pytest.approx((0.36 + 0.0 + 0.64) / 3)
    assert float(likeness(torch.tensor([[0.2, 0.8]] * 4))) == pytest.approx(1.0)
    assert float(likeness(torch.eye(3))) == 0.0
    assert float(likeness(torch.tensor([[0.2, 0.8]]))) == pytest.approx(0.0)  # nobody to be like


def test_experts_used_alike_are_balanced_and_one_for_all_is_not() -> None:
    assert float(imbalance(torch.eye(4))) == pytest.approx(0.0, abs=1e-7)
    assert float(imbalance(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3))) == pytest.approx(math.log(4))
    three_to_one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(imbalance(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))) == pytest.approx(three_to_one)


# a mixed batch ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def mixed(base: BaseModel) -> list[Request]:
    """Two users with routers, of different ranks, one without, one with a single expert, and the bare base model."""
    experts = random_experts(base)
    first_only = RoutedUser(experts, torch.tensor([1.0, 0.0, 0.0]).double(), {})
    people = [
        random_user(experts, seed=1),
        None,
        random_user(experts, seed=2, rank=4),
        random_user(experts, seed=3, rank=0),
        first_only,
    ]
    return [Request(row, people[place % len(people)]) for place, row in enumerate(random_rows(11, 12))]


def slow(base: BaseModel, request: Request):
    return slow_model(base, slow_user(request.adapter) if request.adapter else {})


def test_generation_with_a_cache_and_padding_is_the_slow_formula(base: BaseModel) -> None:
    requests = mixed(base)
    together = generate(base, requests, max_new_tokens=6, engine=TOGETHER)
    for request, text in zip(requests, together, strict=True):
        assert generate(base, [request], max_new_tokens=6, engine=ALONE) == [text]
    for request, text in zip(requests[:5], together, strict=False):
        tokens = slow_greedy(slow(base, request), request.row.prompt, 6, base.end_ids)
        assert text == base.tokens.decode(tokens)
    assert len(set(together)) > 6, "different people should answer differently here"


def test_scores_of_a_pack_are_the_slow_formula(base: BaseModel) -> None:
    requests = mixed(base)
    together = score_answers(base, requests, engine=TOGETHER)
    alone = [score_answers(base, [request], engine=ALONE)[0] for request in requests]
    assert together == pytest.approx(alone, abs=1e-11)
    wanted = [float(slow_nll(slow(base, request), request.row)) for request in requests[:6]]
    assert together[:6] == pytest.approx(wanted, abs=1e-10)


def test_label_scores_are_those_of_separate_rows(base: BaseModel) -> None:
    requests = mixed(base)
    labels = [(40, 41, 1), (40, 1), (99, 98, 97, 1)]
    answered = answer_and_score(base, requests, [labels] * len(requests), max_new_tokens=2, engine=TOGETHER)
    for index, request in enumerate(requests[:5]):
        model = slow(base, request)
        for column, label in enumerate(labels):
            wanted = -float(slow_nll(model, TokenRow(request.row.prompt, label)))
            assert float(answered[index].scores[column]) == pytest.approx(wanted, abs=1e-10)


def test_the_router_reads_the_token(base: BaseModel) -> None:
    """Otherwise the tests above would hold for weights that are the same for all tokens."""
    user = random_user(random_experts(base), seed=1)
    name = next(iter(user.own))
    weights = user_part(drawn(50, user.own[name].A.shape[1]), user.own[name])[1]
    assert float(weights.std(dim=0).max()) > 0.05


# refusals -----------------------------------------------------------------------------------------------------------


def test_adapters_and_routed_users_do_not_share_a_batch(base: BaseModel) -> None:
    rows = random_rows(1, 2)
    adapter = random_adapter(base, FEED_FORWARD, seed=1)
    for pair in (
        (adapter, random_user(random_experts(base), seed=1)),
        (random_user(random_experts(base), seed=1), adapter),
    ):
        requests = [Request(row, one) for row, one in zip(rows, pair, strict=True)]
        with pytest.raises(AdapterError, match="answer them in separate calls"):
            score_answers(base, requests, engine=TOGETHER)


def test_users_of_other_experts_are_refused(base: BaseModel) -> None:
    people = [random_user(random_experts(base, seed=seed), seed=1) for seed in (1, 2)]
    requests = [Request(row, one) for row, one in zip(random_rows(1, 2), people, strict=True)]
    with pytest.raises(AdapterError, match="different experts"):
        score_answers(base, requests, engine=TOGETHER)


def test_experts_of_another_base_model_are_refused(base: BaseModel) -> None:
    user = random_user(random_experts(tiny_base(width=64)), seed=1)
    with pytest.raises(AdapterError, match="use the base model they were trained on"):
        score_answers(base, [Request(random_rows(1, 1)[0], user)], engine=TOGETHER)


def test_a_batch_that_was_not_routed_is_refused(base: BaseModel) -> None:
    user = random_user(random_experts(base), seed=1)
    shapes = base.shapes(FEED_FORWARD)
    stack = ExpertStack(user.experts, [user], shapes, device="cpu", dtype=base.dtype)
    ids = torch.arange(5, 15)[None]
    with attached(base.model, stack), pytest.raises(AdapterError, match="route every row"):
        base.model(input_ids=ids)
    stack.route(torch.tensor([0, 0]))
    with attached(base.model, stack), pytest.raises(AdapterError, match="2 rows are routed"):
        base.model(input_ids=ids)


def test_what_a_user_reports_of_herself(base: BaseModel) -> None:
    experts = random_experts(base)
    assert [random_user(experts, seed=1, rank=rank).rank for rank in (0, 3)] == [0, 3]
    one = random_user(experts, seed=1, rank=3)
    half = replace(one, own=dict(list(one.own.items())[:2]))
    assert set(half.modules) == set(base.shapes(FEED_FORWARD))
    row = random_rows(1, 1)[0]
    (found,) = score_answers(base, [Request(row, half)], engine=ALONE)
    assert found == pytest.approx(float(slow_nll(slow(base, Request(row, half)), row)), abs=1e-10)
