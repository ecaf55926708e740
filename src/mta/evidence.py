"""Merge weights by evidence: how likely each anchor's adapter makes the user's own history.

The anchors are hypotheses of what the user is like. Their weights are the posterior under Bayes' rule, from the weights
of Eq. 6 as prior and the likelihood of the user's own leave-one-out examples under each anchor alone, tempered: a
person's items are no independent draws, and adapters are surer than they should be. Nobody's adapter may be a
hypothesis too; what weight it gets falls away, so that a user whom no anchor fits is left with what lies beneath.

One forward pass over the history an anchor, no gradients; queries play no part. Users are weighed in shared batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mta.bank import Bank
from mta.base_model import BaseModel
from mta.config import EngineConfig, MergeConfig
from mta.generation import Request, score_answers
from mta.lora.adapter import AdapterSum
from mta.merging import Match, posterior_weights
from mta.packing import TokenRow
from mta.progress import Progress, silent

REQUESTS_PER_CALL = 256
"""Examples under one anchor each that are scored between two reports of progress."""


def weigh_by_evidence(
    base: BaseModel,
    bank: Bank,
    matches: Mapping[str, Match],
    rows: Mapping[str, Sequence[TokenRow]],
    *,
    merging: MergeConfig,
    engine: EngineConfig,
    progress: Progress = silent,
) -> dict[str, Match]:
    """Weigh every user's anchors by the user's own examples.

    Args:
        base: the frozen model.
        bank: its anchors.
        matches: user id -> the anchors to weigh, with the weights that are the prior.
        rows: user id -> the user's own examples; a user without any keeps the prior.
        merging: temperature, whether nobody's adapter counts, and how a single anchor is put over what lies beneath.
        engine: packing.
        progress: told about the stage.
    """
    names = [name for name in matches if rows.get(name)]
    alone = {anchor: bank.merged([anchor], [1.0], merging) for name in names for anchor in matches[name].anchor_ids}
    nobody = AdapterSum(((1.0, bank.population),)) if bank.population else None
    requests: dict[tuple[str, str | None], list[Request]] = {}
    for anchor in sorted(alone):  # anchor by anchor, so that a batch holds few adapters
        for name in names:
            if anchor in matches[name].anchor_ids:
                requests[name, anchor] = [Request(row, alone[anchor]) for row in rows[name]]
    if merging.nobody:
        requests |= {(name, None): [Request(row, nobody) for row in rows[name]] for name in names}
    nats = _nats(base, requests, engine, progress)
    found = dict(matches)
    for name in names:
        match = matches[name]
        weights = posterior_weights(
            torch.tensor(match.weights, dtype=torch.float64),
            torch.tensor([nats[name, anchor] for anchor in match.anchor_ids], dtype=torch.float64),
            temperature=merging.evidence_temperature,
            nobody=nats.get((name, None)),
        )
        found[name] = replace(match, weights=tuple(weights.tolist()))
    return found


def _nats(
    base: BaseModel, requests: Mapping[tuple[str, str | None], list[Request]], engine: EngineConfig, progress: Progress
) -> dict[tuple[str, str | None], float]:
    """Return the summed negative log-likelihood of each user's examples under each of her anchors."""
    owners = [key for key, asked in requests.items() for _ in asked]
    asked = [request for group in requests.values() for request in group]
    sums = dict.fromkeys(requests, 0.0)
    with progress("evidence") as step:
        for start in range(0, len(asked), REQUESTS_PER_CALL):
            part = slice(start, start + REQUESTS_PER_CALL)
            for key, nats in zip(owners[part], score_answers(base, asked[part], engine=engine), strict=True):
                sums[key] += nats
            step(min(start + REQUESTS_PER_CALL, len(asked)), len(asked))
    return sums
