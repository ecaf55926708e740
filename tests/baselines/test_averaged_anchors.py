"""Anchors' answers mixed by hand, from what each answers alone."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.base_model import BaseModel
from mta.baselines.averaged_anchors import averaged_anchors
from mta.config import MergeConfig
from mta.errors import ConfigError
from mta.evaluation.predict import predict
from mta.generation import Request, score_answers
from mta.lora.adapter import AdapterSum
from mta.merging import Match
from mta.personalize import Resources, match_users, renderer
from mta.records import Query, User
from mta.tasks.examples import query_examples
from small_world import ADAPT, ENCODER, ENGINE, OWN, PROMPTS, invented_bank, small_targets


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float32)


def users() -> list[User]:
    return [
        replace(user, queries=tuple(Query(f"{user.user_id}-{n}", f"what {n}", gold=f"answer {n}") for n in range(2)))
        for user in small_targets()
    ]


def resources(base: BaseModel, folder: Path, *, population: bool = False, **merge: str) -> Resources:
    bank = invented_bank(folder / "bank", base=base, population=population)
    return Resources(
        base=base,
        task=OWN,
        prompts=PROMPTS,
        adapt=ADAPT,
        folder=folder,
        bank=bank,
        encoder=ENCODER,
        engine=ENGINE,
        merge=MergeConfig(**merge),
    )


def nats(base: BaseModel, have: Resources, user: User, terms: list) -> list[list[float]]:
    """What each token of the gold answers costs under a sum of adapters."""
    found = []
    for example in query_examples(OWN, user, history_k=PROMPTS.history_k):
        row = base.tokens.row(renderer(OWN, PROMPTS)(example), None, PROMPTS, reserve=OWN.max_new_tokens)
        gold = base.tokens.answer_ids(example.answer, PROMPTS)
        adapter = AdapterSum(tuple(terms)) if terms else None
        begun = [Request(replace(row, answer=gold[:length]), adapter) for length in range(1, len(gold) + 1)]
        found.append([after - before for before, after in pairwise([0.0, *score_answers(base, begun, engine=ENGINE)])])
    return found


@pytest.mark.parametrize("population", [False, True], ids=["bare", "over a population adapter"])
@pytest.mark.parametrize("mode", ["cat", "linear"])
def test_anchors_answers_are_mixed_by_their_weights(
    base: BaseModel, tmp_path: Path, monkeypatch, population: bool, mode: str
) -> None:
    """What the weights leave goes to what lies beneath."""
    have = resources(base, tmp_path, population=population, mode=mode)
    bank = have.need_bank()
    beneath = [(1.0, bank.population)] if bank.population else []
    known: dict[str, Match] = match_users(users(), have)
    for weights in (None, (0.5, 0.2)):
        found = {name: replace(match, weights=weights or match.weights) for name, match in known.items()}
        monkeypatch.setattr(sys.modules["mta.personalize"], "match_users", lambda *a, found=found: found)
        people = averaged_anchors(users(), have).users
        for user in users():
            match = found[user.user_id]
            ways = [nats(base, have, user, [*beneath, (1.0, bank.adapter(name))]) for name in match.anchor_ids]
            rest, bare = 1 - sum(match.weights), nats(base, have, user, beneath)
            rows = predict([people[user.user_id]], base=base, engine=ENGINE).rows
            for place, row in enumerate(rows):
                wanted = 0.0
                for token, beneath_cost in enumerate(bare[place]):
                    parts = [w * math.exp(-way[place][token]) for w, way in zip(match.weights, ways, strict=True)]
                    wanted -= math.log(sum(parts) + rest * math.exp(-beneath_cost))
                assert row.nll == pytest.approx(wanted, rel=1e-4)


def test_weights_that_are_no_shares_are_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no shares of anything"):
        averaged_anchors(users(), resources(base, tmp_path, weights="search"))
