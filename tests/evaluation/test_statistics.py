from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mta.errors import ConfigError, DataError, NotFound
from mta.evaluation.statistics import MEASURES, measure_names, paired_difference, score_predictions
from mta.metrics import score
from mta.records import Prediction

LABELS = ["a", "b", "c"]


def answer(user_id: str, query_id: str, text: str, gold: str = "a", **more: object) -> Prediction:
    return Prediction(query_id, user_id, gold, text, **more)  # type: ignore[arg-type]


def random_answers(*, people: int, queries: int, right: float, seed: int) -> list[Prediction]:
    rng = random.Random(seed)
    golds = random.Random(0)
    return [
        answer(f"u{person}", f"q{query}", gold if rng.random() < right else rng.choice([*LABELS, "?"]), gold)
        for person in range(people)
        for query in range(queries)
        for gold in [golds.choice(LABELS)]
    ]


def test_points_are_the_pooled_official_metrics() -> None:
    rows = random_answers(people=9, queries=5, right=0.5, seed=1)
    names = ["accuracy", "macro_f1"]
    found = score_predictions(rows, metrics=names, labels=LABELS)
    theirs = score(names, [row.text for row in rows], [row.gold for row in rows], labels=LABELS)
    assert found.metrics == pytest.approx(theirs)
    assert (found.people, found.queries) == (9, 45)


def test_label_scores_and_nll_by_hand() -> None:
    rows = [
        answer("u", "1", "4", "5", label="5", nll=1.0, nll_tokens=1),
        answer("v", "2", "4", "4", label="2", nll=5.0, nll_tokens=3),
    ]
    found = score_predictions(rows, metrics=["mae", "rmse"], labels=["1", "2", "3", "4", "5"]).metrics
    assert found == pytest.approx(
        {"mae": 0.5, "rmse": math.sqrt(0.5), "label_accuracy": 0.5, "label_mae": 1.0, "nll": 6 / 4}
    )


def test_measures_that_some_predictions_lack_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [answer("u", "1", "a", nll=1.0, label="a"), answer("v", "2", "a", nll=math.nan, label=None)]
    with caplog.at_level(logging.WARNING):
        found = score_predictions(rows, metrics=["accuracy"], labels=LABELS)
    assert set(found.metrics) == {"accuracy"}
    assert "nll left out: only 1 of 2" in caplog.text
    assert "label left out" in caplog.text


def test_predictions_without_a_model_have_no_nll_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = score_predictions([answer("u", "1", "a"), answer("v", "2", "b")], metrics=["accuracy"], labels=LABELS)
    assert set(found.metrics) == {"accuracy"}
    assert caplog.text == ""


def test_measure_names() -> None:
    assert measure_names(["accuracy", "macro_f1"]) == ["accuracy", "macro_f1", "label_accuracy", "nll"]
    assert measure_names(["mae", "rmse"]) == ["mae", "rmse", "label_accuracy", "label_mae", "nll"]
    assert measure_names(["rouge_1", "rouge_l"]) == ["rouge_1", "rouge_l", "nll"]
    assert all(MEASURES[name].name == name for name in MEASURES)


def slow_bootstrap(rows: Sequence[Prediction], value: Callable[[list[Prediction]], float]) -> tuple[float, float]:
    """Draw people one by one and score the drawn texts again, the long way."""
    by_person: dict[str, list[Prediction]] = {}
    for row in rows:
        by_person.setdefault(row.user_id, []).append(row)
    rng = random.Random(5)
    people = list(by_person)
    values = [
        value(list(itertools.chain.from_iterable(by_person[rng.choice(people)] for _ in people))) for _ in range(3000)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_intervals_agree_with_drawing_people_one_by_one(name: str) -> None:
    everything = random_answers(people=15, queries=6, right=0.4, seed=2)
    rows = [row for row in everything if int(row.query_id[1:]) <= int(row.user_id[1:]) % 6]
    rows += [answer("u0", f"more{index}", "b") for index in range(9)]
    found = score_predictions(rows, metrics=[name], labels=LABELS, resamples=6000).ci95[name]
    slow = slow_bootstrap(
        rows, lambda drawn: score([name], [r.text for r in drawn], [r.gold for r in drawn], labels=LABELS)[name]
    )
    assert found == pytest.approx(slow, abs=0.02)


def test_rmse_interval_is_recomputed_from_sums() -> None:
    # Errors 0 and 2: a resample holds the second 0, 1 or 2 times -> RMSE 0, sqrt(2) or 2, never a mean of RMSEs.
    rows = [answer("u", "1", "3", "3"), answer("v", "2", "5", "3")]
    found = score_predictions(rows, metrics=["rmse"], labels=["1", "2", "3", "4", "5"])
    assert found.metrics["rmse"] == pytest.approx(math.sqrt(2))
    assert found.ci95["rmse"] == pytest.approx((0.0, 2.0))


def test_intervals_resample_people_not_queries() -> None:
    """The same 60 answers: 30 people with 2 queries each, or 3 people whose 20 answers are all right or all wrong."""
    texts = ["a"] * 40 + ["b"] * 20
    many = [answer(f"u{index % 30}", str(index), text) for index, text in enumerate(texts)]
    few = [answer(f"u{index // 20}", str(index), text) for index, text in enumerate(texts)]
    wide, narrow = (
        score_predictions(rows, metrics=["accuracy"], labels=LABELS).ci95["accuracy"] for rows in (few, many)
    )
    assert wide is not None
    assert narrow is not None
    assert wide == (0.0, 1.0)
    assert narrow[1] - narrow[0] < 0.35


def test_a_person_with_many_queries_widens_the_interval() -> None:
    def width(extra: int) -> float:
        rows = [answer(f"u{index}", "1", "ab"[index % 2]) for index in range(20)]
        rows += [answer("u0", f"extra{index}", "a") for index in range(extra)]
        pair = score_predictions(rows, metrics=["accuracy"], labels=LABELS).ci95["accuracy"]
        assert pair is not None
        return pair[1] - pair[0]

    assert width(20) > 1.2 * width(0)


def test_siblings_count_as_one_person() -> None:
    rows = random_answers(people=12, queries=2, right=0.5, seed=3)
    siblings = {f"u{index}": f"person {index // 3}" for index in range(12)}
    alone = score_predictions(rows, metrics=["accuracy"], labels=LABELS)
    grouped = score_predictions(rows, metrics=["accuracy"], labels=LABELS, people=siblings)
    assert (alone.people, grouped.people) == (12, 4)
    assert grouped.metrics == alone.metrics
    renamed = [Prediction(f"{r.user_id}{r.query_id}", siblings[r.user_id], r.gold, r.text) for r in rows]
    assert score_predictions(renamed, metrics=["accuracy"], labels=LABELS).ci95 == grouped.ci95


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(11)
    hits = 0
    for trial in range(120):
        rows = [
            answer(f"u{person}", str(query), "a" if rng.random() < share else "b")
            for person in range(40)
            for share in [rng.choice([0.2, 0.8])]
            for query in range(4)
        ]
        pair = score_predictions(rows, metrics=["accuracy"], labels=LABELS, resamples=400, seed=trial).ci95["accuracy"]
        assert pair is not None
        hits += pair[0] <= 0.5 <= pair[1]
    assert 0.87 <= hits / 120 <= 0.99


def test_the_seed_decides_the_interval_and_nothing_else() -> None:
    rows = random_answers(people=20, queries=3, right=0.5, seed=4)
    one, again, other = (score_predictions(rows, metrics=["accuracy"], labels=LABELS, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.metrics == other.metrics
    assert one.ci95 != other.ci95


def test_the_order_of_predictions_does_not_change_the_points() -> None:
    rows = random_answers(people=8, queries=3, right=0.5, seed=4)
    found = score_predictions(rows[::-1], metrics=["accuracy", "macro_f1"], labels=LABELS)
    assert found.metrics == score_predictions(rows, metrics=["accuracy", "macro_f1"], labels=LABELS).metrics


def test_one_person_has_a_score_but_no_interval() -> None:
    found = score_predictions([answer("u", "1", "a"), answer("u", "2", "b")], metrics=["accuracy"], labels=LABELS)
    assert found.metrics["accuracy"] == 0.5
    assert found.ci95 == {"accuracy": None}


def test_several_seeds_pool_and_count_their_queries_once() -> None:
    rows = random_answers(people=5, queries=2, right=0.5, seed=1) + random_answers(people=5, queries=2, right=1, seed=2)
    found = score_predictions(rows, metrics=["accuracy"], labels=LABELS)
    assert (found.people, found.queries) == (5, 10)


def test_a_large_run_is_quick() -> None:
    rows = random_answers(people=40, queries=150, right=0.5, seed=1)
    started = time.perf_counter()
    score_predictions(rows, metrics=["accuracy", "macro_f1"], labels=LABELS, resamples=2000)
    assert time.perf_counter() - started < 2  # takes .03 s; the slow way above takes minutes


def test_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="no predictions"):
        score_predictions([], metrics=["accuracy"])
    with pytest.raises(NotFound, match="unknown metric 'bleu'"):
        score_predictions([answer("u", "1", "a")], metrics=["bleu"])
    with pytest.raises(ConfigError, match="resamples is 0"):
        score_predictions([answer("u", "1", "a"), answer("v", "1", "a")], metrics=["accuracy"], resamples=0)


def test_difference_by_hand_and_exact_p_value() -> None:
    # Four people, one query each; a is right on all, b on none. Of the 16 ways to swap only two (none, all)
    # give a difference of size 1.
    a = [answer(f"u{index}", "q", "a") for index in range(4)]
    b = [answer(f"u{index}", "q", "b") for index in range(4)]
    found = paired_difference(a, b, "accuracy", labels=LABELS)
    assert found.difference == 1
    assert found.ci95 == (1.0, 1.0)
    assert found.p_value == 2 / 16
    assert (found.people, found.queries) == (4, 4)


def test_exact_p_value_of_uneven_people_equals_enumeration() -> None:
    rng = random.Random(8)
    a, b = [], []
    for person in range(7):
        for query in range(1 + person % 3):
            a.append(answer(f"u{person}", str(query), rng.choice("ab")))
            b.append(answer(f"u{person}", str(query), rng.choice("ab")))
    gain = [
        sum((x.text == "a") - (y.text == "a") for x, y in zip(a, b, strict=True) if x.user_id == f"u{person}")
        for person in range(7)
    ]
    all_ways = [sum(s * g for s, g in zip(signs, gain, strict=True)) for signs in itertools.product([1, -1], repeat=7)]
    expected = sum(abs(way) >= abs(sum(gain)) for way in all_ways) / len(all_ways)
    assert paired_difference(a, b, "accuracy", labels=LABELS).p_value == pytest.approx(expected)


def test_random_permutations_come_close_to_the_exact_p_value() -> None:
    a = random_answers(people=12, queries=2, right=0.7, seed=1)
    b = random_answers(people=12, queries=2, right=0.4, seed=2)
    exact = paired_difference(a, b, "macro_f1", labels=LABELS)
    drawn = paired_difference(a, b, "macro_f1", labels=LABELS, permutations=3000)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.03)


def test_difference_changes_sign_with_the_order_and_is_nothing_for_equals() -> None:
    a = random_answers(people=25, queries=2, right=0.8, seed=1)
    b = random_answers(people=25, queries=2, right=0.3, seed=2)
    one, other = paired_difference(a, b, "accuracy", labels=LABELS), paired_difference(b, a, "accuracy", labels=LABELS)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p_value < 0.01
    assert other.p_value == one.p_value
    same = paired_difference(a, a[::-1], "accuracy", labels=LABELS)
    assert (same.difference, same.ci95, same.p_value) == (0, (0, 0), 1)


def test_p_values_of_equal_methods_are_not_too_small() -> None:
    small = 0
    for seed in range(60):
        a = random_answers(people=10, queries=3, right=0.5, seed=1000 + seed)
        b = random_answers(people=10, queries=3, right=0.5, seed=5000 + seed)
        small += paired_difference(a, b, "accuracy", labels=LABELS, resamples=10).p_value <= 0.1
    assert small <= 14  # 6 expected; 15 or more has a chance below .001


def test_pairing_needs_the_same_queries_and_golds() -> None:
    a = [answer("u", "1", "a"), answer("v", "1", "a")]
    with pytest.raises(DataError, match=r"different queries: 2 and 1 answers, and query '1' of user 'v'"):
        paired_difference(a, a[:1], "accuracy", labels=LABELS)
    with pytest.raises(DataError, match="different gold answers for query '1' of user 'v'"):
        paired_difference(a, [a[0], answer("v", "1", "a", "b")], "accuracy", labels=LABELS)
    with pytest.raises(DataError, match="cannot compare by nll"):
        paired_difference(a, a, "nll")
    with pytest.raises(ConfigError, match="permutations is 0"):
        paired_difference(a, a, "accuracy", labels=LABELS, permutations=0)
