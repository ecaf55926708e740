"""Methods pooled with what is known without a language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mta.baselines import pooled_method
from mta.baselines.classical import fit_classical
from mta.baselines.classical_setup import Sentences
from mta.baselines.label_memory import fit_memory
from mta.baselines.label_prior import log_prior_ratio, pool_shares
from mta.baselines.linear_models import people_folds
from mta.baselines.methods import METHODS, find_method
from mta.baselines.pooled_labels import fit_weights
from mta.baselines.pooled_method import FOLDS, fitting_sources
from mta.baselines.prior_method import judges_of
from mta.data.people import rule_for
from mta.evaluation.predict import examples_of, finished, predict
from mta.evaluation.run import open_run
from mta.label_scores import log_shares, median_label
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer
from mta.records import Prediction, User
from mta.tasks import get_task
from small_run import RUN, small_world

SOURCES = {"+memory": ("prior", "memory"), "+pooled": ("prior", "memory", "classical")}
"""Ending -> the sources beside the method's own scores."""
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def have(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Resources:
    config = replace(RUN, bank=replace(RUN.bank, anchors=replace(RUN.bank.anchors, bank_size=2)))
    pool, targets = small_world(pool=7)
    query = replace(targets[0].queries[0], gold="4")
    pool = [replace(user, queries=(query,)) for user in pool]
    return open_run(pool, targets, config, tmp_path_factory.mktemp("run"))


def answers(people: PersonalizedUsers, have: Resources) -> list[Prediction]:
    rows = predict(list(people.users.values()), base=have.base, engine=have.engine).rows
    return finished(people.users, rows)


def by_hand(row: Prediction, user: User, pool: Sequence[User], have: Resources, names: Sequence[str]) -> np.ndarray:
    """Return (1 + S, L) scores of the method and of sources fitted on a pool."""
    assert have.encoder
    render = renderer(have.task, have.prompts)
    (asked,) = (
        one
        for one in examples_of(Personalized(user, have.task, None, render, have.prompts))
        if one.example_id == row.query_id
    )
    ratio = log_prior_ratio(user, pool_shares(have.task, pool), have.task)
    (classical,) = fit_classical(have.task, pool, encoder=have.encoder).answers(user, [asked], personal=False)
    found = {
        "prior": [ratio[label] for label in have.task.labels],
        "memory": fit_memory(have.task, pool, Sentences(have.encoder, None)).log_ratio(user, [asked])[0],
        "classical": list(classical.label_scores.values()),
    }
    return np.array([log_shares(np.array(list(row.label_scores.values()))), *(found[name] for name in names)])


def expected_error(answer: str, scores: Mapping[str, float]) -> float:
    """Return the mean distance of a rating from what the scores say it may be."""
    return sum(math.exp(score) * abs(float(answer) - float(label)) for label, score in scores.items())


@pytest.mark.parametrize("ending", list(SOURCES))
def test_answers_are_the_methods_pooled_with_the_weights_of_the_pool(have: Resources, ending: str) -> None:
    targets, judges, names = small_world(pool=7)[1], judges_of(have), SOURCES[ending]
    judged, plain = (answers(METHODS["merged-only"](users, have), have) for users in (judges, targets))
    folds = people_folds(judges, rule=rule_for(have.task.task_id), folds=FOLDS, seed=0)
    of_judges = []
    for row in judged:
        (judge,) = (user for user in judges if user.user_id == row.user_id)
        rest = [user for user in have.pool if folds.get(user.user_id) != folds[judge.user_id]]
        of_judges.append(by_hand(row, judge, rest, have, names))
    golds = np.array([have.task.labels.index(row.gold) for row in judged])
    start = np.full(1 + len(names), 0.5)
    weights = fit_weights(np.array(of_judges), golds, start=start)
    people = find_method(f"merged-only{ending}")(targets, have)
    for name, weight in zip(("model", *names), weights, strict=True):
        assert people.chosen[f"weight of {name}"] == pytest.approx(weight, abs=1e-3)
    users = {user.user_id: user for user in targets}
    for row, alone in zip(answers(people, have), plain, strict=True):
        wanted = log_shares(weights @ by_hand(alone, users[row.user_id], have.pool, have, names))
        assert list(row.label_scores.values()) == pytest.approx(wanted.tolist(), abs=1e-3)
        assert row.label == have.task.labels[int(np.argmax(list(row.label_scores.values())))]
        assert row.text == min(have.task.labels, key=lambda label: expected_error(label, row.label_scores))
        assert row.nll == pytest.approx(-row.label_scores[row.gold])


def test_the_sources_answer_alone_with_weights_of_their_own(have: Resources) -> None:
    targets, judges, names = small_world(pool=7)[1], judges_of(have), SOURCES["+pooled"]
    asked, judged = (answers(METHODS["base"](users, have), have) for users in (targets, judges))
    folds = people_folds(judges, rule=rule_for(have.task.task_id), folds=FOLDS, seed=0)
    of_judges = []
    for row in judged:
        (judge,) = (user for user in judges if user.user_id == row.user_id)
        rest = [user for user in have.pool if folds.get(user.user_id) != folds[judge.user_id]]
        of_judges.append(by_hand(row, judge, rest, have, names)[1:])
    golds = np.array([have.task.labels.index(row.gold) for row in judged])
    weights = fit_weights(np.array(of_judges), golds, start=np.full(3, 0.5))
    people = METHODS["no-model"](targets, have)
    assert list(people.chosen.values()) == pytest.approx(weights.tolist(), abs=1e-3)
    users = {user.user_id: user for user in targets}
    for row, like in zip(answers(people, have), asked, strict=True):
        wanted = log_shares(weights @ by_hand(like, users[row.user_id], have.pool, have, names)[1:])
        assert list(row.label_scores.values()) == pytest.approx(wanted.tolist(), abs=1e-3)
        assert row.text == median_label(row.label_scores)
        assert (row.query_id, row.gold) == (like.query_id, like.gold)


def test_no_source_has_learned_from_the_judges_it_is_asked_about(
    have: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[set[str]] = []
    asked: list[tuple[int, str]] = []

    def watched(resources: Resources, pool: Sequence[User]) -> pooled_method.Source:
        pools.append({user.user_id for user in pool})
        number = len(pools) - 1

        def scores(user: User, examples: Sequence[object]) -> np.ndarray:
            asked.append((number, user.user_id))
            return np.zeros((len(examples), len(have.task.labels)))

        return scores

    monkeypatch.setattr(pooled_method, "SOURCES", {"prior": pooled_method.SourceKind(lambda task: True, watched)})
    judges = judges_of(have)
    twins = {f"twin of {judge.user_id}": judge.user_id for judge in judges}
    again = [replace(judge, user_id=name) for name, judge in zip(twins, judges, strict=True)]
    pooled_method.judged_scores(judges, replace(have, pool=[*have.pool, *again]), ["prior"])
    assert sorted(name for _, name in asked) == sorted(user.user_id for user in judges)
    persons = [{twins.get(name, name) for name in pool} for pool in pools]
    assert all(name not in persons[number] for number, name in asked)
    assert all(len(pool) > len(have.pool) / 2 for pool in pools)


def test_a_pool_too_small_to_judge_on_gives_the_sources_their_usual_weights(
    have: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    targets = small_world(pool=7)[1]
    people = find_method("base+pooled")(targets, replace(have, bank=None, pool=have.pool[:2]))
    assert list(people.chosen.values()) == [0.5] * 4
    assert "2 people of the pool can judge, and that is too few (" in caplog.text
    alone = find_method("no-model")(targets, replace(have, bank=None, pool=have.pool[:2]))
    assert list(alone.chosen.values()) == [0.5] * 3


@pytest.mark.parametrize(
    ("shares", "median"),
    [((0.4, 0.25, 0.35), "2"), ((0.5, 0.1, 0.4), "1"), ((0.1, 0.1, 0.8), "3"), ((0.25, 0.25, 0.5), "2")],
)
def test_the_median_of_ratings_is_the_lower_where_two_will_do(shares: tuple[float, ...], median: str) -> None:
    assert median_label({str(place): math.log(share) for place, share in enumerate(shares, start=1)}) == median


def test_each_task_has_the_sources_that_mean_something_for_it() -> None:
    every = SOURCES["+pooled"]
    found = {name: fitting_sources(get_task(name), every) for name in ("lamp-1", "lamp-2", "lamp-3", "lamp-4")}
    assert found == {"lamp-1": ("classical",), "lamp-2": every, "lamp-3": every, "lamp-4": ()}


@pytest.mark.parametrize("ending", list(SOURCES))
def test_without_a_source_a_method_is_calibrated_alone(
    have: Resources, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(pooled_method, "fitting_sources", lambda task, asked: ())
    targets = small_world(pool=7)[1]
    people, calibrated = (find_method(f"base{one}")(targets, have) for one in (ending, "+calibrated"))
    assert answers(people, have) == answers(calibrated, have)
