"""Stage 1 as maths: which users of a pool stand for all of them.

User vectors in, anchors out; no model, no file.

Example:
    >>> selection = select_anchors(vectors, sizes, ids, AnchorConfig(bank_size=2, min_history=0))
    >>> [anchor.user_id for anchor in selection.anchors]
    ['ann', 'bob']
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mta.config import AnchorConfig
from mta.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Anchor:
    """One user chosen to represent a cluster."""

    user_id: str
    index: int
    """Place in the pool, from 0."""
    cluster: int
    history_size: int
    """History items the user has."""


@dataclass(frozen=True, slots=True)
class DroppedCluster:
    """A cluster that was asked for and gave no anchor."""

    cluster: int
    reason: str
    user_id: str | None = None
    """Its most active user, or None where the cluster has no users."""
    history_size: int = 0


@dataclass(frozen=True, slots=True)
class AnchorSelection:
    """The anchors, and what became of every user and every cluster."""

    anchors: tuple[Anchor, ...]
    """In order of cluster."""
    clusters: tuple[int, ...]
    """Cluster of each user of the pool, in pool order."""
    asked: int
    """Clusters asked for."""
    dropped: tuple[DroppedCluster, ...] = ()

    @property
    def kept(self) -> int:
        """Number of anchors."""
        return len(self.anchors)


def select_anchors(
    vectors: Tensor,
    history_sizes: Sequence[int],
    *,
    user_ids: Sequence[str],
    config: AnchorConfig,
    label_entropies: Sequence[float] | None = None,
) -> AnchorSelection:
    """Choose the anchors of a pool: cluster the users, take the most active of each cluster.

    A cluster gives no anchor when its most active user has too short a history, when all its users answer too much the
    same, or when there are fewer distinct vectors than clusters; `dropped` says which and why.

    Args:
        vectors: (U, D) user vectors.
        history_sizes: history items of each user, in the same order.
        user_ids: id of each user, in the same order.
        config: clusters asked for, shortest history, least entropy, and the settings of k-means.
        label_entropies: of each user's own answers, in nats; None where nobody is to be refused for it.

    Raises:
        ConfigError: more clusters than users are asked for, the arguments differ in length, or no cluster has a
            user with enough history and entropy.
        DataError: an id appears twice, or a vector is not finite.
    """
    _check_pool(vectors, history_sizes, user_ids, config)
    clusters = cluster_users(vectors, config)
    varied = [True] * len(clusters)
    if label_entropies is not None:
        varied = [entropy >= config.min_label_entropy for entropy in label_entropies]
    anchors, dropped = [], []
    for cluster in sorted(set(clusters) - {each for each, enough in zip(clusters, varied, strict=True) if enough}):
        reason = f"no user whose own answers have an entropy of {config.min_label_entropy:g} nats or more"
        dropped.append(DroppedCluster(cluster, reason))
    for cluster, index in most_active_users(clusters, history_sizes, varied).items():
        size = history_sizes[index]
        if size > config.min_history:
            anchors.append(Anchor(user_ids[index], index, cluster, size))
        else:
            among = "" if label_entropies is None else " of varied enough answers"
            reason = f"its most active user{among} has {size} history items; more than {config.min_history} are needed"
            dropped.append(DroppedCluster(cluster, reason, user_ids[index], size))
    used = set(clusters)
    reason = f"no users: the pool has only {len(used)} distinct groups of vectors"
    dropped += [DroppedCluster(cluster, reason) for cluster in range(config.bank_size) if cluster not in used]
    if not anchors:
        raise ConfigError(
            f"no anchor left: the longest history in the pool has {max(history_sizes)} items, and an anchor needs "
            f"more than {config.min_history}{_and_entropy(config)}; lower --min-history{_or_entropy(config)}, or give "
            "a pool with longer histories"
        )
    if dropped:
        logger.info("anchors: %d clusters asked, %d kept", config.bank_size, len(anchors))
    return AnchorSelection(tuple(anchors), clusters, config.bank_size, tuple(dropped))


def _and_entropy(config: AnchorConfig) -> str:
    least = config.min_label_entropy
    return f" and answers with an entropy of {least:g} nats" if least else ""


def _or_entropy(config: AnchorConfig) -> str:
    return " or --min-label-entropy" if config.min_label_entropy else ""


def cluster_users(vectors: Tensor, config: AnchorConfig) -> tuple[int, ...]:
    """Partition users by k-means on their vectors as they are (not scaled to length 1).

    Computed in float64 on one thread: with more, the order of the sums and so the result would depend on their number.

    Args:
        vectors: (U, D) user vectors.
        config: `bank_size` clusters, or as many as there are distinct vectors, if fewer; seed, restarts, iterations.

    Returns:
        Cluster of each user, from 0.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    points = vectors.detach().cpu().double().numpy()
    count = min(config.bank_size, len(np.unique(points, axis=0)))
    kmeans = KMeans(n_clusters=count, n_init=config.n_init, max_iter=config.max_iter, random_state=config.seed)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points too near to tell apart leave a cluster empty
        labels = kmeans.fit_predict(points)
    return tuple(int(label) for label in labels)


def most_active_users(
    clusters: Sequence[int], history_sizes: Sequence[int], able: Sequence[bool] | None = None
) -> dict[int, int]:
    """Find the user with the longest history in each cluster.

    Source: MTA Eq. 3   u*_v = argmax_{u in C_v} |H_u|

    Args:
        clusters: cluster v of each user.
        history_sizes: |H_u| of each user, in the same order.
        able: whether each user may be taken; None: all may.

    Returns:
        Cluster -> index of its user, clusters ascending; of equally active users the first. Clusters of nobody who may
        be taken are left out.
    """
    best: dict[int, int] = {}
    for index, cluster in enumerate(clusters):
        if able is not None and not able[index]:
            continue
        if cluster not in best or history_sizes[index] > history_sizes[best[cluster]]:
            best[cluster] = index
    return dict(sorted(best.items()))


def _check_pool(vectors: Tensor, history_sizes: Sequence[int], user_ids: Sequence[str], config: AnchorConfig) -> None:
    count = len(user_ids)
    if vectors.ndim != 2 or not len(vectors) == len(history_sizes) == count:
        raise ConfigError(
            f"the pool does not fit together: vectors {tuple(vectors.shape)}, {len(history_sizes)} history sizes, "
            f"{count} user ids; wanted one row, size and id per user"
        )
    if config.bank_size > count:
        raise ConfigError(
            f"bank_size asks for {config.bank_size} clusters, but the pool has {count} users; "
            "lower --bank-size or give a larger pool"
        )
    seen: set[str] = set()
    for index, user_id in enumerate(user_ids):
        if user_id in seen:
            raise DataError(f"user {user_id!r} is in the pool twice; give each person one record")
        if not vectors[index].isfinite().all():
            raise DataError(f"the vector of user {user_id!r} is not finite; embed the pool again")
        seen.add(user_id)
