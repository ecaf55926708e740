"""Merge weights by evidence: how likely each anchor's adapter makes the user's own history.

The anchors are hypotheses of what the user is like. Their weights are the posterior under Bayes' rule, from the weights
of Eq. 6 as prior and the likelihood of the user's own leave-one-out examples under each anchor alone, tempered: a
person's items are no independent draws, and adapters are surer than they should be. Nobody's adapter may be a
hypothesis too; what weight it gets falls away, so that a user whom no anchor fits is left with what lies beneath.

One forward pass over the history an anchor, no gradients; queries play no part. Users are weighed one by one, so that a
user's weights are the same in any company.
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
    found = dict(matches)
    with progress("evidence") as step:
        for done, name in enumerate(names, start=1):
            match, own = matches[name], rows[name]
            nats = [_nats(base, own, alone[anchor], engine) for anchor in match.anchor_ids]
            weights = posterior_weights(
                torch.tensor(match.weights, dtype=torch.float64),
                torch.tensor(nats, dtype=torch.float64),
                temperature=merging.evidence_temperature,
                nobody=_nats(base, own, nobody, engine) if merging.nobody else None,
            )
            # The last digits differ between machines; what is reused by the weights must not.
            found[name] = replace(match, weights=tuple(weights.round(decimals=4).tolist()))
            step(done, len(names))
    return found


def _nats(base: BaseModel, rows: Sequence[TokenRow], adapter: AdapterSum | None, engine: EngineConfig) -> float:
    """Return the summed negative log-likelihood of one user's examples, which share no batch with anybody else's."""
    return sum(score_answers(base, [Request(row, adapter) for row in rows], engine=engine))
