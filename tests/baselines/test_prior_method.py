"""Label priors and the classical control as rows of a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mta.baselines.label_prior import TEMPERATURES, choose_strength, log_prior_ratio, pool_shares, with_prior
from mta.baselines.methods import METHODS, beside_priors, depends_on_seed, find_method, methods_for
from mta.baselines.prior_method import JUDGES, judges_of
from mta.errors import ConfigError, NotFound
from mta.evaluation.predict import finished, predict
from mta.evaluation.run import open_run, run
from mta.judges import asked_more, draw_judges
from mta.personalize import PersonalizedUsers, Resources
from mta.records import Prediction, User
from mta.tasks import get_task
from small_run import RUN, small_world

CONFIG = replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=2)))
pytestmark = pytest.mark.usefixtures("own_cache")


def world() -> tuple[list[User], list[User]]:
    pool, targets = small_world(pool=7)
    query = replace(targets[0].queries[0], gold="4")
    return [replace(user, queries=(query,)) for user in pool], targets


@pytest.fixture(scope="module")
def have(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Resources:
    pool, targets = world()
    return open_run(pool, targets, CONFIG, tmp_path_factory.mktemp("run"))


def answers(people: PersonalizedUsers, have: Resources) -> list[Prediction]:
    rows = predict(list(people.users.values()), base=have.base, engine=have.engine).rows
    return finished(people.users, rows)


def test_answers_are_those_of_the_method_corrected_with_the_strength_of_the_pool(have: Resources) -> None:
    """By hand: strength from the judges' answers, ratio from each target's own history."""
    targets = world()[1]
    shares = pool_shares(have.task, have.pool)
    judges = judges_of(have)
    judged = answers(METHODS["mta"](judges, have), have)
    ratios = {user.user_id: log_prior_ratio(user, shares, have.task) for user in (*judges, *targets)}
    strength = choose_strength(judged, ratios).strength
    plain = answers(METHODS["mta"](targets, have), have)
    wanted = [with_prior(row, ratios[row.user_id], strength) for row in plain]
    corrected = find_method("mta+prior")(targets, have)
    assert answers(corrected, have) == wanted
    assert corrected.chosen == {"prior strength": strength}


def test_calibrated_answers_are_those_of_the_method_at_the_pools_temperature_and_strength(have: Resources) -> None:
    targets = world()[1]
    shares = pool_shares(have.task, have.pool)
    judges = judges_of(have)
    ratios = {user.user_id: log_prior_ratio(user, shares, have.task) for user in (*judges, *targets)}
    judged = answers(METHODS["mta"](judges, have), have)
    choice = choose_strength(judged, ratios, temperatures=TEMPERATURES)
    corrected = find_method("mta+calibrated")(targets, have)
    plain = answers(METHODS["mta"](targets, have), have)
    wanted = [with_prior(row, ratios[row.user_id], choice.strength, choice.temperature) for row in plain]
    assert answers(corrected, have) == wanted
    assert corrected.chosen == {"prior strength": choice.strength, "temperature": choice.temperature}


def test_where_labels_mean_nothing_a_temperature_alone_is_chosen(
    have: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.baselines.prior_method.prior_fits", lambda task: False)
    targets = world()[1]
    corrected = find_method("base+calibrated")(targets, have)
    assert list(corrected.chosen) == ["temperature"]
    warm = corrected.chosen["temperature"]
    plain = answers(METHODS["base"](targets, have), have)
    assert answers(corrected, have) == [with_prior(row, {}, 0.0, warm) for row in plain]
    assert warm != 1, "a random model is not calibrated"


def test_judges_are_answered_pool_users_and_no_anchors(have: Resources) -> None:
    judges = judges_of(have)
    names = {user.user_id for user in judges}
    assert len(names) == 5
    assert not names & set(have.need_bank().anchor_ids)
    many = [replace(user, queries=have.pool[0].queries) for user in small_world(pool=JUDGES + 9)[0]]
    chosen = judges_of(replace(have, pool=many))
    assert len(chosen) == JUDGES
    assert judges_of(replace(have, pool=many[::-1])) == chosen
    silent = [replace(user, queries=tuple(replace(q, gold=None) for q in user.queries)) for user in have.pool]
    assert judges_of(replace(have, pool=silent)) == []


def test_a_banks_own_judges_are_asked(have: Resources) -> None:
    bank = have.need_bank()
    aside = replace(have, bank=replace(bank, config=replace(bank.config, judges=2)))
    drawn = draw_judges(have.pool, have.task, most=2)
    assert judges_of(aside) == [asked_more(judge, have.task) for judge in drawn]
    assert [user.user_id for user in judges_of(aside)] == [user.user_id for user in drawn]


def test_an_anchors_person_is_no_judge_under_another_id_and_nobody_is_two(have: Resources) -> None:
    judges = judges_of(have)
    twice = [*have.pool, *(replace(user, user_id=f"{user.user_id}-again") for user in have.pool)]
    again = judges_of(replace(have, pool=twice))
    assert {user.user_id.removesuffix("-again") for user in again} == {user.user_id for user in judges}
    assert len(again) == len(judges)


def test_one_judge_is_too_few_to_choose_on(have: Resources, caplog: pytest.LogCaptureFixture) -> None:
    """So that the swap of adapters, which needs two people, never fails for want of judges."""
    (first, *_), targets = judges_of(have), world()[1]
    pool = [user if user.user_id == first.user_id else replace(user, queries=()) for user in have.pool]
    people = find_method("swapped-user+prior")(targets, replace(have, pool=pool))
    assert people.chosen == {"prior strength": 1.0}
    assert "1 people of the pool" in caplog.text


def test_without_judges_the_strength_is_one(have: Resources, caplog: pytest.LogCaptureFixture) -> None:
    targets = world()[1]
    alone = replace(have, pool=[replace(user, queries=()) for user in have.pool])
    shares = pool_shares(have.task, have.pool)
    plain = answers(METHODS["base"](targets, alone), alone)
    users = {user.user_id: user for user in targets}
    wanted = [with_prior(row, log_prior_ratio(users[row.user_id], shares, have.task), 1.0) for row in plain]
    assert answers(find_method("base+prior")(targets, alone), alone) == wanted
    assert "strength 1" in caplog.text


def test_rows_of_a_table(tmp_path: Path) -> None:
    names = ("base", "classical-pool", "classical", "mta", "mta+prior")
    scores = run(*world(), replace(CONFIG, methods=names), tmp_path / "run").scores["methods"]
    assert list(scores) == list(names)
    assert scores["classical"]["metrics"]["nll"] != scores["classical-pool"]["metrics"]["nll"]
    assert scores["classical"]["predict_seconds"] is None
    (chosen,) = scores["classical"]["chosen_on_pool"]
    assert {"C", "smoothing", "strength"} <= chosen.keys()
    assert [list(one) for one in scores["mta+prior"]["chosen_on_pool"]] == [["prior strength"]]
    again = run(*world(), replace(CONFIG, methods=names[::-1]), tmp_path / "again").scores["methods"]
    assert {name: again[name]["metrics"] for name in names} == {name: scores[name]["metrics"] for name in names}


def test_a_set_stands_for_its_methods() -> None:
    known = methods_for(get_task("lamp-2"), ["mta", "tables"])
    assert known[0] == "mta"
    assert {"rag-1", "rag-3", "rag-5", "oppu", "per-pcs", "proper", "adapt-only", "merged-only"} < set(known)
    assert {"majority", "classical", "population-adapt", "swapped-user", "mta+prior"} < set(known)
    assert {"majority", "classical", "mta+prior"}.isdisjoint(methods_for(get_task("lamp-4"), ["tables"]))


def test_which_tasks_have_them() -> None:
    asked = ["mta", "mta+prior", "classical"]
    assert methods_for(get_task("lamp-2"), asked) == asked
    assert methods_for(get_task("lamp-1"), ["mta+calibrated"]) == ["mta+calibrated"]
    assert methods_for(get_task("lamp-4"), ["mta+calibrated"]) == ["mta+calibrated"]
    with pytest.raises(ConfigError, match=r"method mta\+prior means nothing for lamp-1"):
        methods_for(get_task("lamp-1"), asked)
    assert methods_for(get_task("lamp-1"), ["mta", "classical"]) == ["mta", "classical"]
    with pytest.raises(ConfigError, match=r"method classical means nothing for lamp-4 \(text answers\)"):
        methods_for(get_task("lamp-4"), ["mta", "classical"])
    assert depends_on_seed("mta+prior")
    assert not depends_on_seed("classical")


@pytest.mark.parametrize(
    "name",
    [
        "nothing+prior",
        "majority+prior",
        "classical+prior",
        "+prior",
        "lead+calibrated",
        "mta+calibrated+prior",
        "mta+prior+prior",
    ],
)
def test_what_has_no_label_scores_has_no_prior(name: str) -> None:
    with pytest.raises(NotFound, match=r"unknown method|has no label scores to correct"):
        find_method(name)


def test_every_method_that_asks_the_model_can_stand_beside_its_prior() -> None:
    rows = beside_priors(["base", "majority", "mta", "mta+prior"], get_task("lamp-2"))
    assert methods_for(get_task("lamp-2"), rows) == ["base", "base+prior", "majority", "mta", "mta+prior"]
    with pytest.raises(ConfigError, match="label priors mean nothing for lamp-4"):
        beside_priors(["base", "mta"], get_task("lamp-4"))
