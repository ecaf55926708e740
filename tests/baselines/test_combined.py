"""A gate and a mixture over ways to serve a user, as rows of a table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mta.baselines.combined import WAYS, CombineConfig, combined
from mta.baselines.methods import METHODS, find_method
from mta.evaluation.notes import method_notes
from mta.evaluation.predict import finished, mixed, predict
from mta.evaluation.run import open_run, run
from mta.lora.adapter import recipe
from mta.personalize import PersonalizedUsers, Resources, match_users
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


def scored(scores: dict[str, float], gold: str = "a") -> Prediction:
    label = max(scores, key=lambda one: scores[one])
    total = math.log(sum(map(math.exp, scores.values())))
    return Prediction("q", "u", gold, label, label=label, nll=total - scores[gold], label_scores=scores)


def test_labels_are_mixed_by_probability() -> None:
    one, two = scored({"a": math.log(0.2), "b": math.log(0.8)}), scored({"a": math.log(6.0), "b": math.log(2.0)})
    found = mixed([(0.75, two), (0.25, one)])
    assert {label: math.exp(score) for label, score in found.label_scores.items()} == pytest.approx(
        {"a": 0.75 * 0.75 + 0.25 * 0.2, "b": 0.75 * 0.25 + 0.25 * 0.8}
    )
    assert (found.label, found.text) == ("a", "a")
    assert found.nll == pytest.approx(-math.log(0.75 * 0.75 + 0.25 * 0.2))
    assert mixed([(1.0, one)]) is one


def test_texts_are_mixed_by_the_likelihood_of_the_gold_answer() -> None:
    likely, unlikely = (
        Prediction("q", "u", "gold", text, nll=nll, nll_tokens=4) for text, nll in [("x", 2.0), ("y", 9.0)]
    )
    found = mixed([(0.6, unlikely), (0.4, likely)])
    assert found.text == "y"
    assert (found.nll, found.nll_tokens) == (pytest.approx(-math.log(0.6 * math.exp(-9) + 0.4 * math.exp(-2))), 4)
    assert mixed([(0.6, unlikely), (0.4, replace(likely, nll=None))]).nll is None


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
    found = answers(combined(users, have, config=config, name="averaged"), have)
    ways = {way: answers(find_method(way)(users, have), have) for way in WAYS}
    weights = {way: math.exp(-nats[users[0].user_id][way] / 2) for way in WAYS}
    del weights["mta"]  # hardly any
    for key, row in found.items():
        wanted = sum(w * math.exp(-(ways[way][key].nll or 0.0)) for way, w in weights.items()) / sum(weights.values())
        assert row.nll == pytest.approx(-math.log(wanted), rel=1e-5)


def test_anchors_answers_are_mixed_by_their_weights(have: Resources, monkeypatch) -> None:
    """By hand, from each anchor's answers alone; what the weights leave goes to the base model."""
    users, bank = small_world()[1], have.need_bank()
    matches = match_users(users, have)
    short = {name: replace(match, weights=(0.5, 0.2)) for name, match in matches.items()}
    for known in (matches, short):
        monkeypatch.setattr("mta.baselines.combined.match_users", lambda *a, found=known: found)
        found = answers(METHODS["averaged-anchors"](users, have), have)
        bare = answers(METHODS["base"](users, have), have)
        for user in users:
            match = known[user.user_id]
            person = METHODS["base"]([user], have).users[user.user_id]
            alone = [
                answers(PersonalizedUsers({"it": replace(person, adapter=recipe(bank.adapter(anchor)))}), have)
                for anchor in match.anchor_ids
            ]
            for key in [key for key in found if key[0] == user.user_id]:
                parts = [w * math.exp(-(one[key].nll or 0)) for w, one in zip(match.weights, alone, strict=True)]
                rest = (1 - sum(match.weights)) * math.exp(-(bare[key].nll or 0))
                assert found[key].nll == pytest.approx(-math.log(sum(parts) + rest), rel=1e-4)


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
