"""Choosing anchors: clusters, the most active user, what is dropped and why."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.anchors import AnchorSelection, cluster_users, most_active_users, select_anchors
from mta.config import AnchorConfig
from mta.errors import ConfigError, DataError


def blobs(sizes: list[int], *, width: int = 4, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Well separated groups of points, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(len(sizes), max(width, len(sizes))) * 50
    rows = [centres[g] + torch.randn(size, centres.shape[1], generator=generator) for g, size in enumerate(sizes)]
    return torch.cat(rows), [g for g, size in enumerate(sizes) for _ in range(size)]


def select(vectors: torch.Tensor, sizes: list[int], **settings_: int) -> AnchorSelection:
    ids = [f"u{i}" for i in range(len(sizes))]
    return select_anchors(vectors, sizes, user_ids=ids, config=AnchorConfig(**settings_))


def test_most_active_user_of_each_cluster_by_hand() -> None:
    assert most_active_users([1, 0, 1, 0, 2], [5, 3, 9, 4, 1]) == {0: 3, 1: 2, 2: 4}


def test_ties_go_to_the_first_user_and_clusters_come_in_order() -> None:
    best = most_active_users([7, 2, 7, 2, 7], [4, 6, 8, 6, 8])
    assert best == {2: 1, 7: 2}
    assert list(best) == [2, 7]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30))
def test_most_active_users_agrees_with_sorting(pairs: list[tuple[int, int]]) -> None:
    clusters, sizes = [c for c, _ in pairs], [s for _, s in pairs]
    slow = {
        cluster: sorted((-sizes[i], i) for i in range(len(pairs)) if clusters[i] == cluster)[0][1]
        for cluster in sorted(set(clusters))
    }
    assert most_active_users(clusters, sizes) == slow


def test_separated_groups_are_found_and_represented_by_their_most_active_user() -> None:
    vectors, groups = blobs([6, 5, 7])
    sizes = [11] * 18
    for most_active in (4, 8, 17):
        sizes[most_active] = 40
    selection = select(vectors, sizes, bank_size=3)
    assert {anchor.index for anchor in selection.anchors} == {4, 8, 17}
    assert all(anchor.user_id == f"u{anchor.index}" and anchor.history_size == 40 for anchor in selection.anchors)
    assert [anchor.cluster for anchor in selection.anchors] == [0, 1, 2]
    assert (selection.asked, selection.kept, selection.dropped) == (3, 3, ())
    pairs = set(zip(groups, selection.clusters, strict=True))
    assert len(pairs) == 3  # one cluster per group, one group per cluster
    assert all(selection.clusters[anchor.index] == anchor.cluster for anchor in selection.anchors)


def test_min_history_is_exclusive_and_the_dropped_cluster_is_reported() -> None:
    vectors, groups = blobs([4, 4])
    selection = select(vectors, [10] * 4 + [11] * 4, bank_size=2, min_history=10)
    assert [anchor.user_id for anchor in selection.anchors] == ["u4"]
    (dropped,) = selection.dropped
    assert (dropped.user_id, dropped.history_size, dropped.cluster) == ("u0", 10, selection.clusters[0])
    assert "10 history items; more than 10" in dropped.reason
    assert selection.kept == 1
    assert groups[selection.anchors[0].index] == 1


def test_the_most_active_user_whose_answers_vary_enough_is_taken() -> None:
    """In the first group the most active always answers the same; in the second all do."""
    vectors, groups = blobs([3, 2])
    ids, config = list("abcde"), AnchorConfig(bank_size=2, min_history=5, min_label_entropy=0.5)
    sizes, entropies = [40, 20, 30, 50, 60], [0.0, 0.9, 0.5, 0.4, 0.0]
    selection = select_anchors(vectors, sizes, user_ids=ids, config=config, label_entropies=entropies)
    assert [anchor.user_id for anchor in selection.anchors] == ["c"], "at the least entropy itself one is let in"
    (dropped,) = selection.dropped
    assert dropped.cluster == selection.clusters[3]
    assert dropped.reason == "no user whose own answers have an entropy of 0.5 nats or more"
    assert groups[2] == 0
    everybody = select_anchors(vectors, sizes, user_ids=ids, config=config)
    assert {anchor.user_id for anchor in everybody.anchors} == {"a", "e"}
    with pytest.raises(
        ConfigError, match=r"answers with an entropy of 0\.5 nats; lower --min-history or --min-label-entropy"
    ):
        select_anchors(vectors, sizes, user_ids=ids, config=config, label_entropies=[0.0] * 5)


def test_no_anchor_at_all_says_what_to_lower() -> None:
    with pytest.raises(ConfigError, match=r"longest history in the pool has 10.*more than 10.*lower --min-history"):
        select(blobs([4, 4])[0], [10] * 8, bank_size=2)


def test_more_clusters_than_users_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"50 clusters.*3 users"):
        select(torch.eye(3), [20] * 3, bank_size=50)


def test_fewer_distinct_vectors_than_clusters_neither_fails_nor_warns() -> None:
    vectors = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = select(vectors, [3, 5, 5, 9, 2, 1], bank_size=5, min_history=0)
    assert {anchor.user_id for anchor in selection.anchors} == {"u1", "u3"}
    assert [dropped.cluster for dropped in selection.dropped] == [2, 3, 4]
    assert all(dropped.user_id is None and "2 distinct" in dropped.reason for dropped in selection.dropped)


def test_points_too_near_for_k_means_to_tell_apart_do_not_warn() -> None:
    vectors = torch.full((4, 2), 1e8, dtype=torch.float64)
    vectors[1, 0] = np.nextafter(1e8, np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = select(vectors, [1, 2, 3, 4], bank_size=4, min_history=0)
    assert selection.kept + len(selection.dropped) == 4


def test_as_many_clusters_as_users_makes_everybody_an_anchor() -> None:
    selection = select(
        torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), [1] * 6, bank_size=6, min_history=0
    )
    assert sorted(anchor.index for anchor in selection.anchors) == list(range(6))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.integers(0, 50))
def test_every_cluster_is_either_an_anchor_or_dropped(bank_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(0, 2, (12, 2), generator=generator).float()
    sizes = torch.randint(0, 20, (12,), generator=generator).tolist()
    sizes[0] = 30
    selection = select(vectors, sizes, bank_size=bank_size, min_history=5, n_init=2)
    told = sorted([a.cluster for a in selection.anchors] + [d.cluster for d in selection.dropped])
    assert told == list(range(bank_size))
    assert all(anchor.history_size == sizes[anchor.index] > 5 for anchor in selection.anchors)


def test_the_same_pool_gives_the_same_anchors_whatever_the_thread_count() -> None:
    from threadpoolctl import threadpool_limits

    vectors = torch.randn(400, 16, generator=torch.Generator().manual_seed(3))
    config = AnchorConfig(bank_size=12, n_init=3)
    first = cluster_users(vectors, config)
    with threadpool_limits(limits=1):
        assert cluster_users(vectors, config) == first
    assert cluster_users(vectors.clone(), config) == first
    assert len(set(first)) == 12


def test_k_means_lowers_the_spread_below_any_single_reassignment() -> None:
    """A local optimum: every user is nearest to the mean of its own cluster."""
    vectors = torch.randn(60, 3, generator=torch.Generator().manual_seed(5)).double()
    labels = torch.tensor(cluster_users(vectors, AnchorConfig(bank_size=4)))
    centres = torch.stack([vectors[labels == c].mean(dim=0) for c in range(4)])
    assert torch.equal(torch.cdist(vectors, centres).argmin(dim=1), labels)


def test_vectors_are_not_scaled_before_clustering() -> None:
    """Two lengths of one direction are two groups by distance, and one group by angle."""
    vectors = torch.tensor([[1.0, 0.0], [1.1, 0.0], [9.0, 0.0], [9.1, 0.0], [1.0, 0.1], [9.0, 0.1]])
    labels = cluster_users(vectors, AnchorConfig(bank_size=2))
    assert labels[0] == labels[1] == labels[4] != labels[2] == labels[3] == labels[5]


def test_a_pool_that_does_not_fit_together_is_refused() -> None:
    config = AnchorConfig(bank_size=1)
    with pytest.raises(ConfigError, match=r"\(3, 3\), 2 history sizes, 3 user ids"):
        select_anchors(torch.eye(3), [1, 2], user_ids=["a", "b", "c"], config=config)
    with pytest.raises(DataError, match="'a' is in the pool twice"):
        select_anchors(torch.eye(2), [1, 2], user_ids=["a", "a"], config=config)
    with pytest.raises(DataError, match="'b' is not finite"):
        select_anchors(torch.tensor([[1.0], [float("nan")]]), [1, 2], user_ids=["a", "b"], config=config)
    with pytest.raises(ConfigError, match=r"1 clusters.*0 users"):
        select_anchors(torch.zeros(0, 2), [], user_ids=[], config=config)
