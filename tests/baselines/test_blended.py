"""Blends of two ways to serve a user, composed of the rows they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mta.baselines.blended import BlendConfig, blended
from mta.baselines.methods import METHODS, find_method
from mta.evaluation.predict import predict
from mta.evaluation.run import open_run
from mta.personalize import Personalized, Resources
from mta.records import Prediction
from small_run import RUN, small_world

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=2)))
PARTS = {"mta-blended": ("mta", "merged-only"), "population-blended": ("population-adapt", "population")}


@pytest.fixture(scope="module")
def have(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Resources:
    return open_run(*small_world(), CONFIG, tmp_path_factory.mktemp("run"))


def _fingerprint(person: Personalized) -> str:
    assert person.adapter
    return person.adapter.fingerprint


def answers(person: Personalized, have: Resources) -> tuple[Prediction, ...]:
    return predict([person], base=have.base, engine=have.engine).rows


@pytest.mark.parametrize("name", list(PARTS))
def test_a_blend_is_its_two_rows_side_by_side(have: Resources, name: str) -> None:
    users = small_world()[1]
    people = METHODS[name](users, have)
    adapted, other = (METHODS[part](users, have) for part in PARTS[name])
    assert (people.train_seconds, people.shared_seconds) == (
        pytest.approx(adapted.train_seconds, abs=5),
        pytest.approx(adapted.shared_seconds, abs=5),
    )
    for user_id, person in people.users.items():
        (first, shown_more), (second, merged) = person.mixture
        assert (first, second) == (0.5, 0.5)
        assert _fingerprint(shown_more) == _fingerprint(adapted.users[user_id])
        assert _fingerprint(merged) == _fingerprint(other.users[user_id])
        assert (shown_more.prompts.history_k, merged.prompts.history_k) == (5, have.prompts.history_k)
        assert (person.updates, person.adapter_bytes) == (
            adapted.users[user_id].updates,
            adapted.users[user_id].adapter_bytes,
        )


def test_all_of_the_share_is_the_adapted_way_alone(have: Resources) -> None:
    users = small_world()[1][:1]
    config = BlendConfig(adapted_history_k=1, adapted_share=1 - 1e-9)
    (person,) = blended(users, have, config=config).users.values()
    (alone,) = METHODS["mta"](users, have).users.values()
    for one, other in zip(answers(person, have), answers(alone, have), strict=True):
        assert one.text == other.text
        assert one.label_scores == pytest.approx(other.label_scores, abs=1e-4)


def test_the_swap_takes_both_adapters_of_the_same_other_person(have: Resources) -> None:
    users = small_world()[1]
    own, swapped = (METHODS[name](users, have).users for name in ("mta-blended", "swapped-blended"))
    donors = METHODS["swapped-user"](users, have).users
    for name, person in swapped.items():
        assert person.user == own[name].user
        ways = [way for _, way in person.mixture]
        assert [way.user for way in ways] == [own[name].user] * 2
        assert _fingerprint(ways[0]) == _fingerprint(donors[name])
        (donor,) = (one for one in own.values() if _fingerprint(one) == _fingerprint(ways[0]))
        assert _fingerprint(ways[1]) == _fingerprint(donor.mixture[1][1])
        assert donor.user != person.user


def test_label_scores_of_a_blend_can_be_corrected(have: Resources) -> None:
    users = small_world()[1]
    people = find_method("mta-blended+prior")(users, have).users
    assert all(person.finish and person.mixture for person in people.values())
