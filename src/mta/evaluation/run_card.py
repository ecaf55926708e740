"""The run card: what decided a table's numbers, for people to read.

Example:
    >>> run_card(config, [resources], targets, scores, seconds=61.0)["anchors asked / kept"]
    '12 / 12'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mta.bank import Bank
from mta.config import to_dict
from mta.data.people import PersonRule, rule_for
from mta.data.splits import answers_in_own_history, seen_answers
from mta.evaluation.notes import cut_prompts, not_adapted
from mta.evaluation.run_config import RunConfig
from mta.evaluation.scores_file import finite
from mta.personalize import Resources
from mta.records import User
from mta.runtime import versions

REPEATS = "of repeated runs"
FIRST_SEED = (
    "who was not adapted, the prompts that were cut, and the slices by similarity and by the anchors' texts are "
    "those of the first seed; training and answer times are means"
)


def run_card(
    config: RunConfig, repeats: Sequence[Resources], targets: Sequence[User], scores: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Return the rows of the card.

    Args:
        config: settings of the run.
        repeats: what each of the repeated runs, or each point of a sweep, had; one for a plain run.
        targets: who was served.
        scores: the content of scores.json.
        seconds: wall time of this call.
    """
    banks = [resources.need_bank() for resources in repeats]
    base, pool = repeats[0].base, repeats[0].pool
    return {
        "pool users": len(pool),
        "target users": len(targets),
        "history items": {"targets": _history_items(targets), "pool": _history_items(pool)},
        "anchors asked / kept": _each(f"{bank.asked} / {len(bank.anchors)}" for bank in banks),
        "anchor tokens trained": _each(sum(anchor.tokens for anchor in bank.anchors) for bank in banks),
        "training pairs from": sorted({anchor.source for bank in banks for anchor in bank.anchors}),
        "population control": _population_effort(banks[0]) if "population" in scores["methods"] else "not run",
        "leak check": leak_check(pool, targets, rule_for(config.task_id)),
        "queries answered in the user's own history": len(answers_in_own_history(targets)),
        "not adapted": not_adapted(scores) or "nobody",
        "prompts cut to fit the model": cut_prompts(scores) or "none",
        "wall seconds of this call": round(seconds, 1),
        "seconds of all calls": {
            "banks": round(sum({bank.checksum: bank.train_seconds for bank in banks}.values()), 1),
            "users' training": _summed(scores, "train_seconds"),
            "answers": _summed(scores, "predict_seconds"),
        },
        "base model": {"name": base.name, "fingerprint": base.fingerprint, "dtype": str(base.dtype)},
        "settings": to_dict(config),
        "versions": versions(),
        **({REPEATS: FIRST_SEED} if len(config.seeds) > 1 else {}),
    }


def leak_check(pool: Sequence[User], targets: Sequence[User], rule: PersonRule) -> str:
    """Say by what the targets were found not to be in the pool, and how many of their answers stand there."""
    compared = "ids" if rule.ids_are_people else "ids and histories"
    if not rule.answers_may_be_seen:
        return f"no target person in the pool (compared by {compared}), no target's answer in a pool history"
    seen = {query_id for _, query_id in seen_answers(pool, targets)}
    count = sum(len(user.queries) for user in targets)
    return (
        f"no target person in the pool (compared by {compared}); {len(seen)} of {count} queries stand in a pool "
        "history with their answer, which this task allows: see the slices by texts seen"
    )


def _summed(scores: Mapping[str, Any], cost: str) -> float:
    """Add a cost up over the methods, each of which has the mean of its seeds."""
    per_seed = max(1, len(scores["seeds"]))
    return round(sum(per_seed * (finite(method.get(cost)) or 0.0) for method in scores["methods"].values()), 1)


def _each(values: Iterable[str | int]) -> str | int:
    """Return what the repeated runs have, once where it is the same in all, else in a row."""
    found = list(values)
    return found[0] if len(set(found)) == 1 else ", ".join(map(str, found))


def _history_items(users: Sequence[User]) -> dict[str, float]:
    """Table 3 of the paper: items per user."""
    counts = [len(user.history) for user in users]
    return {"most": max(counts), "fewest": min(counts), "mean": round(sum(counts) / len(counts), 2)}


def _population_effort(bank: Bank) -> str:
    """Say how the training of the population control compares with what lies beneath the other methods."""
    if bank.population is None:
        return "trained on the anchors' examples, for as many tokens as all anchors together"
    return (
        "trained on the examples of everybody in the pool but judges, for as many tokens as all anchors and the "
        "adapter beneath them together"
    )
