"""A gate and a mixture over ways to serve a user, as rows of a table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mta.baselines.combined import WAYS, CombineConfig, combined
from mta.baselines.methods import METHODS, find_method
from mta.cross_fit import held_out_nats
from mta.evaluation.notes import method_notes
from mta.evaluation.predict import finished, predict
from mta.evaluation.run import open_run, run
from mta.personalize import Personalized, PersonalizedUsers, Resources, answer
from mta.records import Prediction
from small_run import RUN, small_world

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=2)))


@pytest.fixture(scope="module")
def have(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Resources:
    return open_run(*small_world(), CONFIG, tmp_path_factory.mktemp("run"))


def answers(people: PersonalizedUsers, have: Resources) -> dict[tuple[str, str], Prediction]:
    rows = predict(list(people.users.values()), base=have.base, engine=have.engine).rows
    finish = {person.user.user_id: person for person in people.users.values()}
    return {(row.user_id, row.query_id): row for row in finished(finish, rows)}


def test_the_gate_serves_the_way_that_does_best_on_held_out_items(have: Resources, monkeypatch) -> None:
    """One user for each way, and one on whom nothing could be judged."""
    users = small_world()[1]
    assert len(users) >= 3
    nats = {user.user_id: {way: 5.0 - (way == WAYS[place]) for way in WAYS} for place, user in enumerate(users)}
    nats[users[-1].user_id] = dict.fromkeys(WAYS, 1.0)
    monkeypatch.setattr("mta.baselines.combined.held_out_nats", lambda *a, **more: (nats, 7.0))
    people = METHODS["mta-gated"](users, have)
    ways = {way: answers(find_method(way)(users, have), have) for way in WAYS}
    for place, user in enumerate(users):
        way = "base" if place == len(users) - 1 else WAYS[place]
        mine = {key: row for key, row in answers(people, have).items() if key[0] == user.user_id}
        assert mine == {key: ways[way][key] for key in mine}, "of equal ways the simplest"
    assert sum(people.chosen_by_users.values()) == len(users)
    assert people.chosen_by_users["base"] == 2
    assert people.train_seconds > 7
    monkeypatch.setattr("mta.baselines.combined.held_out_nats", lambda *a, **more: ({}, 0.0))
    assert METHODS["mta-gated"](users, have).chosen_by_users == {"mta": len(users)}


def test_the_average_mixes_all_ways_by_their_posterior(have: Resources, monkeypatch) -> None:
    users = small_world()[1][:2]
    nats = {user.user_id: {"base": 3.0, "population": 2.0, "merged-only": 2.5, "mta": 30.0} for user in users}
    monkeypatch.setattr("mta.baselines.combined.held_out_nats", lambda *a, **more: (nats, 0.0))
    config = CombineConfig(how="averaged", temperature=2.0)
    people = combined(users, have, config=config).users
    ways = {way: find_method(way)(users, have).users for way in WAYS}
    weights = {way: math.exp(-nats[users[0].user_id][way] / 2) for way in ("population", "merged-only", "base")}
    assert "mta" not in weights, "hardly any"
    for name, person in people.items():
        assert [share for share, _ in person.mixture] == pytest.approx(
            [weight / sum(weights.values()) for weight in weights.values()], rel=1e-5
        )
        assert [_fingerprint(way) for _, way in person.mixture] == [_fingerprint(ways[way][name]) for way in weights]


def _fingerprint(person: Personalized) -> str | None:
    return person.adapter.fingerprint if person.adapter else None


def test_ways_are_judged_by_their_own_adapters(have: Resources, monkeypatch) -> None:
    """The right adapter under each name, and the costs that come back decide."""
    users, asked = small_world()[1], {}

    def judged(users, resources, ways, *, adapted, folds):
        asked.update(ways=ways, adapted=adapted, folds=folds)
        return held_out_nats(users, resources, ways, adapted=adapted, folds=folds)

    monkeypatch.setattr("mta.baselines.combined.held_out_nats", judged)
    config = CombineConfig(how="gated", folds=2)
    people = combined(users, have, config=config)
    rows = {way: find_method(way)(users, have).users for way in ("population", "merged-only")}
    for user in users:
        for way, served in rows.items():
            assert asked["ways"][way][user.user_id].fingerprint == served[user.user_id].adapter.fingerprint
        assert (
            asked["adapted"]["mta"][user.user_id].fingerprint == rows["merged-only"][user.user_id].adapter.fingerprint
        )
    assert (asked["ways"]["base"], asked["folds"]) == ({}, 2)
    nats, _ = held_out_nats(users, have, asked["ways"], adapted=asked["adapted"], folds=2)
    best = [min(WAYS, key=lambda way, user=user: nats[user.user_id][way]) for user in users]
    assert people.chosen_by_users == {way: best.count(way) for way in WAYS if way in best}


def test_one_question_is_answered_as_all_of_them_together(have: Resources, monkeypatch) -> None:
    users = small_world()[1][:2]
    nats = {user.user_id: {"base": 9.0, "population": 2.0, "merged-only": 2.5, "mta": 9.0} for user in users}
    monkeypatch.setattr("mta.baselines.combined.held_out_nats", lambda *a, **more: (nats, 0.0))
    people = METHODS["mta-averaged"](users, have)
    together = predict(list(people.users.values()), base=have.base, engine=have.engine).rows
    for row in together:
        (query,) = (one for user in users for one in user.queries if one.query_id == row.query_id)
        assert answer(people.users[row.user_id], query.text, base=have.base) == row.text


def test_rows_of_a_table(tmp_path: Path) -> None:
    names = ("base", "population", "merged-only", "mta", "mta-gated", "mta-averaged", "mta-averaged+calibrated")
    found = run(*small_world(), replace(CONFIG, methods=names), tmp_path / "run")
    scores = found.scores["methods"]
    (chosen,) = scores["mta-gated"]["chosen_by_users"]
    assert sum(chosen.values()) == found.scores["people"]
    assert scores["base"]["chosen_by_users"] == []
    assert "Chosen by users' own histories, for how many: mta-gated" in " ".join(method_notes(found.scores))
    again = run(*small_world(), replace(CONFIG, methods=names[::-1]), tmp_path / "again").scores["methods"]
    assert {name: again[name]["metrics"] for name in names} == {name: scores[name]["metrics"] for name in names}
