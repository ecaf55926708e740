from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, mean_absolute_error

from mta import metrics
from mta.errors import DataError, MtaError, NotFound
from mta.metrics import METRICS, find_metric, parse_rating, pooled_statistics, score

RATINGS = ["1", "2", "3", "4", "5"]


def test_accuracy_is_exact_after_stripping() -> None:
    found = score(["accuracy"], [" a ", "A", "b", ""], ["a", "a", "b", "a"], labels=["a", "b"])
    assert found == {"accuracy": 0.5}


def test_macro_f1_by_hand_with_an_invalid_answer_and_an_absent_label() -> None:
    # a: tp 1, fn 2 (one answered "b", one no label at all), fp 0 -> 2 / (2 + 2) = .5
    # b: tp 1, fp 1, fn 0 -> 2 / (2 + 1) = 2/3;   c occurs nowhere -> 0
    found = score(["macro_f1"], ["a", "b", "nonsense", "b"], ["a", "a", "a", "b"], labels=["a", "b", "c"])
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)


def test_a_perfect_answer_cannot_exceed_the_share_of_labels_that_occur() -> None:
    labels = [f"tag {index}" for index in range(15)]
    assert score(["macro_f1"], labels[:14], labels[:14], labels=labels)["macro_f1"] == pytest.approx(14 / 15)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcx")), min_size=1, max_size=40))
def test_macro_f1_equals_scikit_learn_over_the_fixed_labels(pairs: list[tuple[str, str]]) -> None:
    golds, answers = [gold for gold, _ in pairs], [answer for _, answer in pairs]
    labels = list("abcd")
    theirs = f1_score(golds, answers, labels=labels, average="macro", zero_division=0)
    assert score(["macro_f1"], answers, golds, labels=labels)["macro_f1"] == pytest.approx(theirs)


def test_ratings_are_neither_clipped_nor_rounded() -> None:
    found = score(["mae", "rmse"], ["4.5", "7", " 2 "], ["4", "5", "2"], labels=RATINGS)
    assert found["mae"] == pytest.approx((0.5 + 2 + 0) / 3)
    assert found["rmse"] == pytest.approx(math.sqrt((0.25 + 4 + 0) / 3))
    theirs = mean_absolute_error([4, 5, 2], [4.5, 7, 2])
    assert found["mae"] == pytest.approx(theirs)


@pytest.mark.parametrize(("gold", "error"), [("1", 4), ("2", 3), ("3", 2), ("4", 3), ("5", 4)])
@pytest.mark.parametrize("answer", ["", "five", "nan", "inf", "-inf", "1e400", "1e200", "4 stars"])
def test_what_is_no_rating_counts_as_the_farther_extreme(answer: str, gold: str, error: float) -> None:
    assert score(["mae"], [answer], [gold], labels=RATINGS)["mae"] == error


def test_the_extreme_changes_side_at_the_middle() -> None:
    assert score(["mae"], ["?"], ["2.9"], labels=["1", "5"])["mae"] == pytest.approx(2.1)
    assert score(["mae"], ["?"], ["3.1"], labels=["1", "5"])["mae"] == pytest.approx(2.1)


def test_the_extremes_come_from_the_labels() -> None:
    assert score(["mae"], ["?"], ["2"], labels=["0", "10"])["mae"] == 8
    assert score(["mae"], ["?"], ["2"], labels=())["mae"] == 3


@pytest.mark.parametrize(("text", "value"), [("1e5", 1e5), (" 3.0 ", 3.0), ("-1", -1.0), ("nan", None), ("x", None)])
def test_parse_rating(text: str, value: float | None) -> None:
    assert parse_rating(text) == value


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_no_answer_whatever_makes_a_rating_score_infinite(answers: list[str]) -> None:
    found = score(["mae", "rmse"], answers, ["3"] * len(answers), labels=RATINGS)
    assert all(math.isfinite(value) for value in found.values())


def test_rouge_by_hand() -> None:
    # gold: the cat sat on the mat (6 words); answer: the cat on mat (4). Unigrams: 4 in common; longest common
    # subsequence: the cat on mat = 4. P = 1, R = 4/6, F = 2 * 1 * (2/3) / (5/3) = .8
    found = score(["rouge_1", "rouge_l"], ["The cat on mat"], ["the cat sat on the mat"])
    assert found["rouge_1"] == pytest.approx(0.8)
    assert found["rouge_l"] == pytest.approx(0.8)


def test_rouge_l_sees_order_and_rouge_1_does_not() -> None:
    found = score(["rouge_1", "rouge_l"], ["mat the"], ["the mat"])
    assert found["rouge_1"] == 1
    assert found["rouge_l"] == 0.5


def test_rouge_does_not_stem() -> None:
    assert score(["rouge_1"], ["cats"], ["cat"])["rouge_1"] == 0


def test_rouge_is_the_plain_mean_and_an_empty_answer_counts_zero() -> None:
    assert score(["rouge_1"], ["a b", ""], ["a b", "c d"])["rouge_1"] == 0.5


@pytest.mark.parametrize("name", METRICS)
def test_sums_of_statistics_carry_the_whole_score(name: str) -> None:
    answers, golds = ["1", "2", "x", "5"], ["1", "3", "3", "4"]
    rows = pooled_statistics(METRICS[name], answers, golds, labels=RATINGS)
    halves = np.stack([rows[:2].sum(axis=0), rows[2:].sum(axis=0)])
    whole = score([name], answers, golds, labels=RATINGS)[name]
    assert float(METRICS[name].value(halves.sum(axis=0))) == pytest.approx(whole)
    by_halves = [score([name], answers[cut], golds[cut], labels=RATINGS)[name] for cut in (slice(2), slice(2, 4))]
    assert METRICS[name].value(halves) == pytest.approx(by_halves)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_know_their_direction(name: str) -> None:
    golds = ["1", "2", "3", "4", "5"]
    right = score([name], golds, golds, labels=RATINGS)[name]
    wrong = score([name], golds[::-1], golds, labels=RATINGS)[name]
    assert (right > wrong) == METRICS[name].higher_is_better
    assert METRICS[name].name == name


def test_unknown_metric_lists_the_known() -> None:
    with pytest.raises(NotFound, match=r"unknown metric 'bleu'; known: .*rouge_1"):
        find_metric("bleu")


@pytest.mark.parametrize(
    ("name", "answers", "golds", "labels", "message"),
    [
        ("accuracy", ["a"], ["a", "b"], [], "1 predictions but 2 gold answers"),
        ("accuracy", [], [], [], "no predictions"),
        ("accuracy", ["a"], ["z"], ["a", "b"], r"'z' is not one of the task's labels \(a, b\)"),
        ("macro_f1", ["a"], ["z"], ["a", "b"], "'z' is not one of"),
        ("macro_f1", ["a"], ["a"], [], "needs the task's list of labels"),
        ("mae", ["1"], ["good"], RATINGS, "gold rating 'good' is not a number"),
        ("rmse", ["1"], ["nan"], RATINGS, "gold rating 'nan' is not a number"),
    ],
)
def test_data_that_cannot_be_scored(
    name: str, answers: list[str], golds: list[str], labels: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        score([name], answers, golds, labels=labels)
    assert isinstance(caught.value, MtaError)


def test_rouge_of_an_answer_is_computed_once_for_both_kinds_and_every_comparison() -> None:
    texts, golds = [f"rain number {place}" for place in range(20)], ["it rained a number of days"] * 20
    before = metrics._rouge_scores.cache_info().misses
    first = score(["rouge_1", "rouge_l"], texts, golds)
    assert score(["rouge_1", "rouge_l"], texts, golds) == first
    assert metrics._rouge_scores.cache_info().misses - before == 20
