"""Stage 2 as maths: which anchors a user is close to, with what weights, merged into one adapter.

Vectors and adapters in, adapters out; no model, no file. `weights[k]` always belongs to `adapters[k]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mta.config import BY_HISTORY, MergeConfig
from mta.errors import ConfigError
from mta.lora.adapter import Adapter, AdapterSum, cat, distance, mix_factors, require_one_weight_each, scale
from mta.seeds import stable_seed

SIDE_BY_SIDE = 16
"""Users in one product of similarities."""
BLOCK_VALUES = 4_000_000
"""Similarities held at once, of as many users as that makes; 32 MB, and twice that where the nearest are picked."""


@dataclass(frozen=True, slots=True)
class Match:
    """The anchors one user is merged from, nearest first."""

    user_id: str
    anchor_ids: tuple[str, ...]
    similarities: tuple[float, ...]
    """Cosine similarity to each anchor, highest first."""
    weights: tuple[float, ...]
    """Merge weight of each anchor, in the same order; they sum to 1, unless the user's own history made them."""


def cosine_similarity(users: Tensor, anchors: Tensor) -> Tensor:
    """Return the cosine similarity of every user to every anchor.

    Source: MTA Eq. 4   sim(u, s) = E_u . E_s / (|E_u| |E_s|)

    Args:
        users: (U, D) retrieval vectors.
        anchors: (M, D) retrieval vectors from the same encoder.

    Returns:
        (U, M) in [-1, 1], to five decimals; a zero vector is similar to nothing (0).
    """
    if users.shape[-1] != anchors.shape[-1]:
        raise ConfigError(
            f"user vectors have {users.shape[-1]} dimensions, anchor vectors {anchors.shape[-1]}; "
            "use the encoder the bank was built with"
        )
    unit_anchors = torch.nn.functional.normalize(anchors.double(), dim=-1)
    similarities = torch.zeros(len(users), len(anchors), dtype=torch.float64)
    for start in range(0, len(users), SIDE_BY_SIDE):
        part = users[start : start + SIDE_BY_SIDE].double()
        # Products of one size for any company, so that it does not decide the last bit.
        block = torch.zeros(SIDE_BY_SIDE, users.shape[-1], dtype=torch.float64, device=users.device)
        block[: len(part)] = torch.nn.functional.normalize(part, dim=-1)
        similarities[start : start + len(part)] = (block @ unit_anchors.T)[: len(part)]
    # Further digits depend on which texts an encoder saw together; weights, and what is reused by them, must not.
    return similarities.clamp_(-1, 1).round_(decimals=5)


def similarity_weights(similarities: Tensor) -> Tensor:
    """Turn the similarities of one user's K anchors into merge weights.

    Source: MTA Eq. 6   w_k = sim_k / sum_j sim_j

    Negative similarities count as 0; if none is positive the weights are uniform. The closer anchor never gets the
    smaller weight.

    Args:
        similarities: (..., K), the last dimension one user's anchors.

    Returns:
        (..., K) >= 0, each user's sum 1, in the order of `similarities`.
    """
    positive = similarities.double().clamp_min(0)
    total = positive.sum(dim=-1, keepdim=True)
    uniform = torch.full_like(positive, 1 / positive.shape[-1])
    return torch.where(total > 0, positive / total, uniform)


class Choose(Protocol):
    """A way to pick anchors: `match_anchors`, or `random_anchors`."""

    def __call__(
        self, user_ids: Sequence[str], similarities: Tensor, anchor_ids: Sequence[str], *, top_k: int
    ) -> list[Match]:
        """Pick each user's `top_k` anchors and weigh them."""


def match_in_blocks(
    user_ids: Sequence[str],
    users: Tensor,
    anchor_ids: Sequence[str],
    anchors: Tensor,
    *,
    choose: Choose,
    top_k: int,
) -> list[Match]:
    """Compare users with anchors and pick each user's, so many users at a time as memory bears.

    All similarities of 10^6 users to 10^3 anchors would be 8 GB. What a user gets does not depend on the block.

    Args:
        user_ids: U ids.
        users: (U, D) retrieval vectors.
        anchor_ids: M ids, in the order of `anchors`.
        anchors: (M, D) retrieval vectors from the same encoder.
        choose: picks anchors by the similarities of a block.
        top_k: anchors per user (K).

    Raises:
        ConfigError: K is larger than the bank, or the vectors are of different encoders.
    """
    if len(user_ids) != len(users):
        raise ValueError(f"{len(user_ids)} user ids for {len(users)} vectors; wanted one each")
    size = SIDE_BY_SIDE * max(1, BLOCK_VALUES // (SIDE_BY_SIDE * max(1, len(anchors))))
    found: list[Match] = []
    for start in range(0, len(user_ids) or 1, size):  # nobody is a block too: what is wrong with a bank is said
        names, part = user_ids[start : start + size], users[start : start + size]
        found += choose(names, cosine_similarity(part, anchors), anchor_ids, top_k=top_k)
    return found


def match_anchors(
    user_ids: Sequence[str], similarities: Tensor, anchor_ids: Sequence[str], *, top_k: int
) -> list[Match]:
    """Pick each user's `top_k` most similar anchors and weigh them.

    Args:
        user_ids: U ids.
        similarities: (U, M) from `cosine_similarity`.
        anchor_ids: M ids, in the order of the columns; equal similarities keep this order.
        top_k: anchors per user (K).

    Raises:
        ConfigError: K is larger than the bank.
    """
    _require_enough(anchor_ids, top_k)
    return _matches(user_ids, similarities, anchor_ids, _nearest(similarities, top_k))


def _nearest(similarities: Tensor, count: int) -> Tensor:
    """Return the columns of each row's highest values, highest first and equal ones in the order of columns."""
    # Similarities are rounded, so that they are equal or much further apart than this.
    behind = torch.linspace(0, 1e-9, similarities.shape[1], dtype=torch.float64)
    return torch.topk(similarities.double() - behind, count, dim=1).indices


def random_anchors(
    user_ids: Sequence[str], similarities: Tensor, anchor_ids: Sequence[str], *, top_k: int, seed: int = 0
) -> list[Match]:
    """Draw `top_k` anchors for each user, whatever their similarity; the control for matching.

    The draw depends on the seed and the user's id alone. Arguments, order and errors as for `match_anchors`.
    """
    _require_enough(anchor_ids, top_k)
    places = torch.empty(len(user_ids), top_k, dtype=torch.int64)
    for place, user_id, row in zip(places, user_ids, similarities, strict=True):
        generator = torch.Generator().manual_seed(stable_seed(seed, "anchors", user_id))
        drawn = torch.randperm(len(anchor_ids), generator=generator)[:top_k]
        place.copy_(drawn[torch.sort(row[drawn], descending=True, stable=True).indices])
    return _matches(user_ids, similarities, anchor_ids, places)


def _require_enough(anchor_ids: Sequence[str], top_k: int) -> None:
    if top_k > len(anchor_ids):
        raise ConfigError(
            f"top_k is {top_k} but the bank has {len(anchor_ids)} anchors; "
            f"lower --top-k to at most {len(anchor_ids)} or build a larger bank"
        )


def _matches(user_ids: Sequence[str], similarities: Tensor, anchor_ids: Sequence[str], places: Tensor) -> list[Match]:
    """Make the matches of users whose anchors are at `places (U, K)`, nearest first."""
    chosen = similarities.gather(1, places)
    rows = zip(user_ids, places.tolist(), chosen.tolist(), similarity_weights(chosen).tolist(), strict=True)
    return [
        Match(user_id, tuple(anchor_ids[place] for place in at), tuple(found), tuple(weights))
        for user_id, at, found, weights in rows
    ]


def softmax_weights(similarities: Tensor, temperature: float) -> Tensor:
    """Turn the similarities of one user's K anchors into weights w_k = softmax(sim_k / temperature), (K,)."""
    return torch.softmax(similarities.double() / temperature, dim=0)


def posterior_weights(prior: Tensor, nats: Tensor, *, temperature: float, nobody: float | None = None) -> Tensor:
    """Turn what the user's own examples cost under each of K anchors into merge weights.

    Bayes' rule with a tempered likelihood: w_k ~ prior_k exp(-nats_k / temperature). "Nobody" is one more hypothesis
    with the prior of an average anchor, whose weight is left out of the result.

    Args:
        prior: (K,) >= 0, not all 0.
        nats: (K,) negative log-likelihood of all the user's examples under each anchor.
        temperature: above 0; 1 takes the likelihood as it is, infinity leaves the prior.
        nobody: their negative log-likelihood without any anchor; None: not considered.

    Returns:
        (K,) >= 0; their sum is 1, or below where nobody's adapter does well.
    """
    if nobody is not None:
        prior = torch.cat([prior, prior.mean()[None]])
        nats = torch.cat([nats, nats.new_tensor([nobody])])
    return torch.softmax(prior.double().log() - nats.double() / temperature, dim=0)[: len(nats) - (nobody is not None)]


def fixed_weights(count: int, first: float) -> Tensor:
    """Return (count,) weights: `first` for the nearest anchor, the rest in equal parts; 1 for an only anchor.

    The paper's figure 3 compares such weights with those of Eq. 6.
    """
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    rest = torch.full((count - 1,), (1 - first) / (count - 1), dtype=torch.float64)
    return torch.cat([torch.tensor([first], dtype=torch.float64), rest])


def check_weights(config: MergeConfig, *, top_k: int) -> None:
    """Check that as many anchors can be weighed as asked.

    Raises:
        ConfigError: "inverted" weights of other than two anchors.
    """
    if config.weights == "inverted" and top_k != 2:
        raise ConfigError(
            f"inverted weights exchange those of two anchors, and there are {top_k}; use --top-k 2, or other --weights"
        )


def reweigh(match: Match, config: MergeConfig) -> Match:
    """Return a match with the weights that `config` asks for; "search" and "evidence" start from those of Eq. 6.

    Raises:
        ConfigError: "inverted" weights of other than two anchors.
    """
    if config.weights in ("similarity", *BY_HISTORY):
        return match
    similarities = torch.tensor(match.similarities, dtype=torch.float64)
    check_weights(config, top_k=len(match.weights))
    if config.weights == "inverted":
        return replace(match, weights=match.weights[::-1])
    if config.weights == "softmax":
        weights = softmax_weights(similarities, config.temperature)
    elif config.weights == "fixed":
        weights = fixed_weights(len(similarities), config.first_weight)
    else:
        weights = torch.full_like(similarities, 1 / len(similarities))
    return replace(match, weights=tuple(weights.tolist()))


def merge_cat(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Merge adapters exactly: the delta is the weighted sum of the deltas, at rank K * r.

    Source: MTA Eq. 5   Delta = sum_k w_k B_k A_k

    Args:
        adapters: K adapters; ranks may differ.
        weights: K numbers; weights[k] belongs to adapters[k].

    Raises:
        AdapterError: counts do not match, or the adapters belong to different base models.
    """
    require_one_weight_each(adapters, weights)
    return cat([scale(adapter, w) for adapter, w in zip(adapters, weights, strict=True)])


def merge_linear(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Merge adapters factor by factor, as the authors' code does; the rank stays r.

    Source: MTA Eq. 5   A = sum_k w_k A_k,   B = sum_k w_k B_k

    The delta of the result is not the weighted sum of the deltas unless all adapters share A (see
    `lora.adapter.mix_factors`). Use `merge_cat` where that must hold exactly.

    Raises:
        AdapterError: modules or ranks differ, or counts do not match.
    """
    return mix_factors(adapters, weights)


def merge_terms(adapters: Sequence[Adapter], weights: Sequence[float], config: MergeConfig) -> AdapterSum:
    """Merge as configured: `cat` or `linear`, times the optional scale of the merged delta (1 is the paper).

    A `cat` merge stays a sum of the adapters themselves, which users of one bank share.

    Raises:
        AdapterError: counts do not match, or factors to be averaged differ in shape.
    """
    if config.mode == "linear":
        share = sum(weights) if config.nobody else 1.0  # in both factors it would shrink the delta by its square
        even = [w / share for w in weights] if share > 0 else weights
        return AdapterSum(((config.scale * share, merge_linear(adapters, even)),))
    require_one_weight_each(adapters, weights)
    return AdapterSum(tuple((w * config.scale, adapter) for w, adapter in zip(weights, adapters, strict=True)))


@dataclass(frozen=True, slots=True)
class MergeDistance:
    """How far the factor-wise merge is from the exact one."""

    relative: float
    """|exact - linear| / |exact| over all modules; 0 when they agree."""
    cosine: float
    """Cosine of the two deltas; 1 when they point the same way."""


def merge_distance(adapters: Sequence[Adapter], weights: Sequence[float]) -> MergeDistance:
    """Measure how far `merge_linear` is from `merge_cat` for one user's anchors."""
    return MergeDistance(*distance(merge_cat(adapters, weights), merge_linear(adapters, weights)))
