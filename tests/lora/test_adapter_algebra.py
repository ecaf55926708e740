"""The algebra: adapters add, scale, mix and truncate as their dense deltas do."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import random_adapter, tiny_base
from mta.config import ALL_LINEAR, MergeConfig
from mta.errors import AdapterError, ConfigError
from mta.lora.adapter import Adapter, Factors, cat, distance, mix_factors, scale, truncate
from mta.memory import _Allocations
from mta.merging import (
    Match,
    cosine_similarity,
    match_anchors,
    match_in_blocks,
    merge_cat,
    merge_distance,
    merge_linear,
    merge_terms,
    random_anchors,
    reweigh,
    similarity_weights,
)

BASE = tiny_base()
NAMES = list(BASE.shapes(ALL_LINEAR))


def adapters(count: int, *, shared_a: bool = False, ranks: tuple[int, ...] = (4,)) -> list[Adapter]:
    return [
        random_adapter(BASE, ALL_LINEAR, seed=s, rank=ranks[s % len(ranks)], size=1.0, shared_a=shared_a)
        for s in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(-2, 2), min_size=1, max_size=5))
def test_cat_merge_equals_the_weighted_sum_of_dense_deltas(weights):
    parts = adapters(len(weights), ranks=(4, 2, 8))
    merged = merge_cat(parts, weights)
    for name in NAMES[:3]:
        dense = sum(w * p.modules[name].B @ p.modules[name].A for w, p in zip(weights, parts, strict=True))
        assert torch.allclose(merged.delta(name), dense, atol=1e-10)
    assert merged.rank == sum(p.rank for p in parts)


def test_linear_merge_mixes_the_factors_and_is_not_the_sum_of_deltas():
    a, b = adapters(2)
    mixed = merge_linear([a, b], [0.7, 0.3])
    name = NAMES[0]
    A = 0.7 * a.modules[name].A + 0.3 * b.modules[name].A
    B = 0.7 * a.modules[name].B + 0.3 * b.modules[name].B
    assert torch.allclose(mixed.delta(name), B @ A, atol=1e-12)
    found = merge_distance([a, b], [0.5, 0.5])
    # independent A and B: the factor-wise merge keeps a cosine and a norm of about 1/sqrt(2)
    assert found.cosine == pytest.approx(0.707, abs=0.05)
    assert found.relative == pytest.approx(0.707, abs=0.05)


def test_with_a_shared_A_both_merges_agree():
    parts = adapters(3, shared_a=True)
    found = merge_distance(parts, [0.5, 0.3, 0.2])
    assert found.relative < 1e-6
    assert found.cosine == pytest.approx(1, abs=1e-12)


def test_merging_one_anchor_with_weight_one_is_that_anchor():
    (one,) = adapters(1)
    for mode in ("cat", "linear"):
        merged = merge_terms([one], [1.0], MergeConfig(mode=mode)).whole()
        assert all(torch.equal(merged.delta(name), one.delta(name)) for name in NAMES)


def test_scale_of_the_merged_delta():
    parts = adapters(2)
    once, half = (merge_terms(parts, [0.6, 0.4], MergeConfig(scale=s)).whole() for s in (1.0, 0.5))
    assert torch.allclose(half.delta(NAMES[0]), 0.5 * once.delta(NAMES[0]))


def test_distance_equals_the_dense_formula():
    a, b = adapters(2)
    dense_a = torch.cat([a.delta(name).flatten() for name in NAMES])
    dense_b = torch.cat([b.delta(name).flatten() for name in NAMES])
    relative, cosine = distance(a, b)
    assert relative == pytest.approx(float((dense_a - dense_b).norm() / dense_a.norm()))
    assert cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(dense_a, dense_b, dim=0)))
    assert a.norm() == pytest.approx(float(dense_a.norm()))


def test_truncation_is_the_best_low_rank_approximation_and_reports_its_loss():
    merged = cat(adapters(3))
    short, lost = truncate(merged, 6)
    assert short.rank == 6
    kept = total = 0.0
    for name in NAMES:
        values = torch.linalg.svdvals(merged.delta(name))
        kept += float((values[:6] ** 2).sum())
        total += float((values**2).sum())
        error = float((merged.delta(name) - short.delta(name)).norm())
        assert error == pytest.approx(float((values[6:] ** 2).sum().sqrt()), rel=1e-6)
    assert lost == pytest.approx(1 - kept / total, rel=1e-6)
    same, nothing = truncate(merged, merged.rank)
    assert nothing == pytest.approx(0, abs=1e-12)
    assert torch.allclose(same.delta(NAMES[0]), merged.delta(NAMES[0]), atol=1e-8)


def test_inputs_are_unchanged_and_scale_goes_into_B():
    (one,) = adapters(1)
    before = one.fingerprint()
    double = scale(one, 2.0)
    assert one.fingerprint() == before
    assert double.modules[NAMES[0]].A is one.modules[NAMES[0]].A


def test_adapters_that_do_not_fit_are_refused_with_both_sizes():
    a = Adapter({"q": Factors(torch.zeros(2, 4), torch.zeros(4, 2))})
    b = Adapter({"q": Factors(torch.zeros(3, 4), torch.zeros(4, 3))})
    wide = Adapter({"q": Factors(torch.zeros(2, 8), torch.zeros(4, 2))})
    other = Adapter({"v": Factors(torch.zeros(2, 4), torch.zeros(4, 2))})
    with pytest.raises(AdapterError, match="equal ranks"):
        mix_factors([a, b], [0.5, 0.5])
    with pytest.raises(AdapterError, match="different base models"):
        cat([a, wide])
    with pytest.raises(AdapterError, match="different modules"):
        mix_factors([a, other], [0.5, 0.5])
    with pytest.raises(AdapterError, match="2 adapters and 1 weights"):
        merge_cat([a, b], [1.0])
    with pytest.raises(AdapterError, match="one r"):
        Adapter({"q": Factors(torch.zeros(2, 4), torch.zeros(4, 3))})
    with pytest.raises(AdapterError, match="zero adapters"):
        cat([])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_weights_sum_to_one_and_the_closer_anchor_never_weighs_less(similarities):
    ordered = sorted(similarities, reverse=True)
    weights = similarity_weights(torch.tensor(ordered, dtype=torch.float64)).tolist()
    assert sum(weights) == pytest.approx(1)
    assert all(w >= 0 for w in weights)
    assert weights == sorted(weights, reverse=True)


def test_weights_by_hand():
    assert similarity_weights(torch.tensor([0.9, 0.6])).tolist() == pytest.approx([0.6, 0.4])
    assert similarity_weights(torch.tensor([-0.2, -0.5])).tolist() == [0.5, 0.5]
    assert similarity_weights(torch.tensor([0.5, -0.5])).tolist() == [1.0, 0.0]


MATCH = Match("u", ("a", "b", "c"), (0.8, 0.6, 0.2), (0.5, 0.375, 0.125))


def weights_of(match: Match = MATCH, **settings: object) -> list[float]:
    return list(reweigh(match, MergeConfig(**settings)).weights)


def test_other_weights_by_hand():
    assert weights_of() == [0.5, 0.375, 0.125]
    assert weights_of(weights="uniform") == pytest.approx([1 / 3] * 3)
    assert weights_of(weights="fixed", first_weight=0.7) == pytest.approx([0.7, 0.15, 0.15])
    powers = [math.exp(s / 0.1) for s in MATCH.similarities]
    assert weights_of(weights="softmax", temperature=0.1) == pytest.approx([p / sum(powers) for p in powers])
    one = Match("u", ("a",), (0.4,), (1.0,))
    for name in ("similarity", "softmax", "uniform"):
        assert weights_of(one, weights=name) == [1.0]
    assert weights_of(one, weights="fixed", first_weight=0.3) == [1.0]
    with pytest.raises(ConfigError, match="makes no use of it"):
        weights_of(weights="uniform", first_weight=0.3)


def test_inverted_weights_give_the_closer_anchor_the_smaller_one():
    """What the authors' released code does; the paper's Eq. 6, the default, does the opposite."""
    two = Match("u", ("a", "b"), (0.9, 0.6), (0.6, 0.4))
    assert weights_of(two, weights="inverted") == [0.4, 0.6]
    assert weights_of(two) == [0.6, 0.4]
    with pytest.raises(ConfigError, match="two anchors, and there are 3"):
        weights_of(weights="inverted")


def test_random_anchors_depend_on_the_user_alone():
    names = [f"a{n}" for n in range(6)]
    users = [f"u{n}" for n in range(40)]
    similarity = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = random_anchors(users, similarity, names, top_k=2)
    (alone,) = random_anchors(["u7"], similarity[7:8], names, top_k=2)
    assert alone == drawn[7]
    assert {name for match in drawn for name in match.anchor_ids} == set(names)
    for row, match in zip(similarity, drawn, strict=True):
        assert len(set(match.anchor_ids)) == 2
        assert list(match.similarities) == [float(row[names.index(name)]) for name in match.anchor_ids]
        assert match.similarities[0] >= match.similarities[1]
        assert match.weights == tuple(
            similarity_weights(torch.tensor(match.similarities, dtype=torch.float64)).tolist()
        )
    nearest = match_anchors(users, similarity, names, top_k=2)
    assert sum(one.anchor_ids == two.anchor_ids for one, two in zip(drawn, nearest, strict=True)) < 15
    with pytest.raises(ConfigError, match="top_k is 7"):
        random_anchors(["u"], similarity[:1], names, top_k=7)


def test_matching_by_hand():
    users = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    anchors = torch.tensor([[0.0, 2.0], [5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    similarity = cosine_similarity(users, anchors)
    assert similarity[1].tolist() == pytest.approx([0.8, 0.6, 7 / (5 * 2**0.5), 0.0])
    first, second = match_anchors(["u", "v"], similarity, ["a", "b", "c", "d"], top_k=2)
    assert first.anchor_ids == ("b", "c")
    assert second.anchor_ids == ("c", "a")
    assert second.weights[0] > second.weights[1]
    assert sum(second.weights) == pytest.approx(1)


def test_equal_similarities_keep_the_order_of_the_bank():
    names = [f"a{n}" for n in range(300)]
    similarity = torch.full((2, 300), 0.25, dtype=torch.float64)
    similarity[1, 7] = similarity[1, 299] = 0.25001
    first, second = match_anchors(["u", "v"], similarity, names, top_k=3)
    assert first.anchor_ids == ("a0", "a1", "a2")
    assert second.anchor_ids == ("a7", "a299", "a0")
    assert first.similarities == (0.25, 0.25, 0.25)


def test_similarity_does_not_depend_on_the_company():
    generator = torch.Generator().manual_seed(0)
    users, anchors = torch.randn(150, 40, generator=generator), torch.randn(30, 40, generator=generator)
    together = cosine_similarity(users, anchors)
    for index in (0, 15, 16, 149):
        assert torch.equal(cosine_similarity(users[index : index + 1], anchors)[0], together[index])
        exact = torch.nn.functional.cosine_similarity(users[index].double(), anchors.double(), dim=-1)
        assert torch.allclose(together[index], exact, rtol=0, atol=5.1e-6)


def vectors(seed: int, count: int) -> torch.Tensor:
    """Vectors of few directions, so that many similarities are equal."""
    return torch.randint(-1, 2, (count, 4), generator=torch.Generator().manual_seed(seed)).float()


def matched(choose, *, users: int = 150, anchors: int = 30) -> list[Match]:
    ids, names = [f"u{n}" for n in range(users)], [f"a{n}" for n in range(anchors)]
    return match_in_blocks(ids, vectors(1, users), names, vectors(2, anchors), choose=choose, top_k=3)


@pytest.mark.parametrize("choose", [match_anchors, partial(random_anchors, seed=7)], ids=["nearest", "random"])
def test_blocks_of_any_size_give_the_same_matches(monkeypatch, choose):
    similarity = cosine_similarity(vectors(1, 150), vectors(2, 30))
    whole = choose([f"u{n}" for n in range(150)], similarity, [f"a{n}" for n in range(30)], top_k=3)
    assert all(len(set(row)) < 30 for row in similarity.tolist()), "equal similarities are among them"
    for values in (1, 30 * 16, 30 * 64, 30 * 150, 10**9):
        monkeypatch.setattr("mta.merging.BLOCK_VALUES", values)
        assert matched(choose) == whole


def test_no_more_than_a_block_of_similarities_is_held(monkeypatch):
    full = 2000 * 100 * 8
    with _Allocations() as counted:
        whole = matched(match_anchors, users=2000, anchors=100)
    assert counted.peak > 2 * full, "this sees the matrix, and its copy"
    monkeypatch.setattr("mta.merging.BLOCK_VALUES", 100 * 64)
    with _Allocations() as counted:
        assert matched(match_anchors, users=2000, anchors=100) == whole
    assert counted.peak < 0.2 * full


def test_nobody_is_matched_to_nothing_and_what_is_wrong_is_said_all_the_same():
    assert matched(match_anchors, users=0) == []
    with pytest.raises(ConfigError, match="top_k is 3 but the bank has 2 anchors"):
        matched(match_anchors, users=0, anchors=2)
    with pytest.raises(ValueError, match="1 user ids for 2 vectors"):
        match_in_blocks(["u"], vectors(1, 2), ["a"], vectors(2, 1), choose=match_anchors, top_k=1)


def test_more_anchors_than_the_bank_has_is_refused():
    with pytest.raises(ConfigError, match="top_k is 3 but the bank has 2 anchors"):
        match_anchors(["u"], torch.zeros(1, 2), ["a", "b"], top_k=3)
    with pytest.raises(ConfigError, match="use the encoder the bank was built with"):
        cosine_similarity(torch.zeros(1, 3), torch.zeros(1, 4))
