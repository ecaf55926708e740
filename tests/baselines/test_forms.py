"""Every row that is merge-then-adapt with one choice made otherwise: what is merged, how, and what lies on top."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.bank_building import build_bank
from mta.baselines.methods import METHODS, PARTS, RAG_MTA_K
from mta.config import BY_HISTORY, MergeConfig
from mta.evaluation.predict import examples_of
from mta.lora.adapter import Adapter
from mta.merging import Match, merge_cat, merge_linear, random_anchors
from mta.personalize import Personalized, Resources, match_users
from mta.records import User
from mta.user_rows import user_rows
from small_world import ADAPT, BANK, ENCODER, ENCODERS, ENGINE, OWN, PROMPTS, person, small_pool, small_targets

POOL = [*small_pool(), person("ivy", items=5, topic=3)]
"""Four topics, so that drawn anchors are mostly not the nearest."""


@pytest.fixture(scope="module")
def have(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    base = tiny_base(torch.float32)
    folder = tmp_path_factory.mktemp("forms")
    config = replace(BANK, anchors=replace(BANK.anchors, bank_size=4))
    bank = build_bank(POOL, OWN, base, folder / "bank", config=config, encoders=ENCODERS, engine=ENGINE)
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder / "adapters", bank=bank, pool=POOL,
        encoder=ENCODER, engine=ENGINE,
    )  # fmt: skip


def wanted_match(name: str, user: User, have: Resources) -> Match:
    """The anchors and weights of a row, from the similarities alone."""
    nearest = match_users([user], have)[user.user_id]
    bank = have.need_bank()
    everybody = match_users([user], replace(have, match=replace(have.match, top_k=len(bank.anchor_ids))))[user.user_id]
    of = dict(zip(everybody.anchor_ids, everybody.similarities, strict=True))
    if "random" in name:
        columns = torch.tensor([[of[anchor] for anchor in bank.anchor_ids]])
        (drawn,) = random_anchors(
            [user.user_id], columns, bank.anchor_ids, top_k=have.match.top_k, seed=bank.config.anchors.seed
        )
        return drawn
    count = len(nearest.weights)
    if "uniform" in name:
        return replace(nearest, weights=(1 / count,) * count)
    if "softmax" in name:
        parts = [math.exp(one / MergeConfig().temperature) for one in nearest.similarities]
        return replace(nearest, weights=tuple(part / sum(parts) for part in parts))
    return nearest


def made(served: Personalized) -> Adapter:
    assert served.adapter is not None
    return served.adapter.parts().whole()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", [name for name in PARTS if PARTS[name].merged and PARTS[name].weights not in BY_HISTORY]
)
def test_what_a_row_merges_and_what_lies_on_top(name: str, have: Resources) -> None:
    people = METHODS[name](small_targets(), have).users
    merge = merge_linear if name.endswith("linear") else merge_cat
    for user in small_targets():
        served, wanted = people[user.user_id], wanted_match(name, user, have)
        match = served.match
        assert match is not None
        assert match.anchor_ids == wanted.anchor_ids
        assert match.weights == pytest.approx(wanted.weights)
        merged = merge([have.need_bank().adapter(anchor) for anchor in match.anchor_ids], match.weights)
        whole, adapted = made(served), PARTS[name].adapted
        assert (served.updates > 0) == adapted
        for module in merged.modules:
            rest = whole.delta(module) - merged.delta(module)
            rank = int(torch.linalg.matrix_rank(rest, atol=1e-5))
            assert rank == (ADAPT.rank if adapted else 0), "on top lies the user's own adapter or nothing"


def test_rows_differ_where_they_should(have: Resources) -> None:
    """Somebody's anchors drawn by chance are not the nearest, and their adapter is then another one."""
    users = small_targets()
    nearest, drawn = METHODS["merged-only"](users, have).users, METHODS["merged-only-random"](users, have).users
    moved = [name for name in nearest if nearest[name].match != drawn[name].match]
    assert moved
    for name in moved:
        assert made(nearest[name]).fingerprint() != made(drawn[name]).fingerprint()


@pytest.mark.parametrize("weights", BY_HISTORY)
@pytest.mark.parametrize("stem", ["mta", "merged-only"])
def test_weights_by_history_are_what_the_history_says(stem: str, weights: str, have: Resources) -> None:
    found = match_users(small_targets(), replace(have, merge=MergeConfig(weights=weights)))
    people = METHODS[f"{stem}-{weights}"](small_targets(), have).users
    assert {user_id: served.match for user_id, served in people.items()} == found
    assert found != match_users(small_targets(), have)
    assert all((served.updates > 0) == (stem == "mta") for served in people.values())


def test_rag_and_mta_show_more_items_in_adaptation_and_answers_over_the_same_bank(have: Resources) -> None:
    users = small_targets()
    plain, more = METHODS["mta"](users, have).users, METHODS["rag+mta"](users, have).users
    by_hand = METHODS["mta"](
        users, replace(have, prompts=replace(PROMPTS, history_k=RAG_MTA_K), folder=Path(have.folder / "hand"))
    )
    for user in users:
        served = more[user.user_id]
        assert served.match == plain[user.user_id].match
        assert made(served).fingerprint() == made(by_hand.users[user.user_id]).fingerprint()
        assert made(served).fingerprint() != made(plain[user.user_id]).fingerprint()
        for example in examples_of(served):
            shown = served.render(example)
            assert sum(item.get("output") in str(shown) for item in user.history) >= RAG_MTA_K
        rows = user_rows(have.base.tokens, OWN, user, train=ADAPT, prompts=served.prompts).rows
        fewer = user_rows(have.base.tokens, OWN, user, train=ADAPT, prompts=PROMPTS).rows
        assert min(map(len, rows)) > min(map(len, fewer))


def test_adapt_only_has_nothing_beneath(have: Resources) -> None:
    for served in METHODS["adapt-only"](small_targets(), have).users.values():
        assert served.match is None
        assert made(served).rank == ADAPT.rank
