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
from mta.evaluation.measures import MEASURES, measure_names
from mta.evaluation.statistics import (
    holm,
    paired_difference,
    require_same_queries,
    score_predictions,
    standard_deviation,
)
from mta.metrics import score
from mta.records import Prediction

LABELS = ["a", "b", "c"]
NLLS = ("nll", "nll_calibrated")


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
    assert measure_names(["accuracy", "macro_f1"]) == ["accuracy", "macro_f1", "label_accuracy", *NLLS]
    assert measure_names(["mae", "rmse"]) == ["mae", "rmse", "label_accuracy", "label_mae", *NLLS]
    assert measure_names(["rouge_1", "rouge_l"]) == ["rouge_1", "rouge_l", *NLLS]
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


# several seeds ----------------------------------------------------------------------------------------------------


def seeds_of(*runs: Sequence[Prediction]) -> tuple[list[Prediction], list[int]]:
    """Pool the runs, mixed query by query, with their seeds 40, 41, ..."""
    rows = [(row, 40 + number) for parts in zip(*runs, strict=True) for number, row in enumerate(parts)]
    return [row for row, _ in rows], [seed for _, seed in rows]


def test_scores_of_each_seed_alone_by_hand() -> None:
    texts = {42: "aab", 40: "abb", 41: "aaa"}
    rows = [answer(f"u{place}", "q", text) for run in texts.values() for place, text in enumerate(run)]
    seed_of = [seed for seed in texts for _ in range(3)]
    found = score_predictions(rows, metrics=["accuracy"], labels=LABELS, seed_of=seed_of)
    assert found.seeds == (40, 41, 42)
    assert found.by_seed["accuracy"] == pytest.approx((1 / 3, 1, 2 / 3))
    assert found.metrics["accuracy"] == pytest.approx(6 / 9)
    assert standard_deviation(found.by_seed["accuracy"]) == pytest.approx(1 / 3)
    assert (found.people, found.queries) == (3, 3)
    assert standard_deviation([0.5]) is None


def test_each_seed_alone_is_scored_as_if_it_were_the_only_one() -> None:
    runs = [random_answers(people=6, queries=3, right=right, seed=7) for right in (0.2, 0.5, 0.8)]
    rows, seed_of = seeds_of(*runs)
    names = ["accuracy", "macro_f1"]
    found = score_predictions(rows, metrics=names, labels=LABELS, seed_of=seed_of)
    for place, run in enumerate(runs):
        alone = score_predictions(run, metrics=names, labels=LABELS).metrics
        assert {name: values[place] for name, values in found.by_seed.items()} == pytest.approx(alone)
    plain = score_predictions(rows, metrics=names, labels=LABELS)
    assert (plain.metrics, plain.ci95, plain.by_seed, plain.seeds) == (found.metrics, found.ci95, {}, ())


def test_the_same_answers_from_every_seed_change_no_score_and_no_interval() -> None:
    """Three equal runs are no more evidence than one: the person is drawn with all seeds."""
    one = random_answers(people=15, queries=2, right=0.5, seed=1)
    rows, seed_of = seeds_of(one, one, one)
    names = ["accuracy", "macro_f1"]
    once = score_predictions(one, metrics=names, labels=LABELS)
    thrice = score_predictions(rows, metrics=names, labels=LABELS, seed_of=seed_of)
    assert thrice.metrics == pytest.approx(once.metrics)
    for name in names:
        assert thrice.ci95[name] == pytest.approx(once.ci95[name])
    assert thrice.queries == once.queries == 30


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_one_answer_stands_for_every_seed(metric: str) -> None:
    runs = [random_answers(people=8, queries=2, right=right, seed=9) for right in (0.3, 0.6, 0.9)]
    a, _ = seeds_of(*runs)
    b = random_answers(people=8, queries=2, right=0.4, seed=3)
    short = paired_difference(a, b[::-1], metric, labels=LABELS)
    assert short == paired_difference(a, [row for row in b for _ in runs], metric, labels=LABELS)
    back = paired_difference(b, a, metric, labels=LABELS)
    assert (back.difference, back.p_value) == (pytest.approx(-short.difference), short.p_value)
    assert (short.people, short.queries) == (8, 16)


def test_difference_over_seeds_equals_a_plain_loop() -> None:
    runs = [random_answers(people=7, queries=2, right=right, seed=9) for right in (0.3, 0.6, 0.9)]
    a, _ = seeds_of(*runs)
    b = random_answers(people=7, queries=2, right=0.4, seed=3)
    right_b = {(row.user_id, row.query_id): row.text == row.gold for row in b}
    gain = dict.fromkeys((row.user_id for row in b), 0)
    for row in a:
        gain[row.user_id] += (row.text == row.gold) - right_b[row.user_id, row.query_id]
    found = paired_difference(a, b, "accuracy", labels=LABELS, resamples=6000)
    assert found.difference == pytest.approx(sum(gain.values()) / len(a))
    ways = [
        abs(sum(sign * value for sign, value in zip(signs, gain.values(), strict=True)))
        for signs in itertools.product([1, -1], repeat=7)
    ]
    assert found.p_value == pytest.approx(sum(way >= abs(sum(gain.values())) for way in ways) / len(ways))
    rng = random.Random(1)
    drawn = [sum(rng.choices(list(gain.values()), k=7)) / len(a) for _ in range(6000)]
    assert found.ci95 == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.03)


def test_answers_of_unequal_number_are_refused() -> None:
    once = [answer("u", "1", "a"), answer("v", "1", "a")]
    require_same_queries(once * 3, once, names=("x", "y"))
    require_same_queries(once, once * 3, names=("x", "y"))
    with pytest.raises(DataError, match=r"x and y cannot be paired.*'1' of user 'u' 3 and 2 times; wanted equally"):
        require_same_queries(once * 3, once * 2, names=("x", "y"))
    with pytest.raises(DataError, match=r"cannot be paired.*query '1' of user 'u' 2 and 1 times"):
        require_same_queries([*once, once[0]], once, names=("x", "y"))  # one query lacks its second seed
    with pytest.raises(DataError, match="different gold answers for query '1' of user 'u'"):
        require_same_queries(once, [*once, answer("u", "1", "a", "b"), once[1]], names=("x", "y"))


def test_seeds_that_do_not_fit_the_answers_are_refused() -> None:
    rows = [answer("u", "1", "a"), answer("v", "1", "a"), answer("u", "1", "b")]
    with pytest.raises(DataError, match="3 predictions but 2 seeds"):
        score_predictions(rows, metrics=["accuracy"], labels=LABELS, seed_of=[1, 2])
    with pytest.raises(DataError, match=r"seeds 1 and 2 must each answer every query once, but query '1' of user 'v'"):
        score_predictions(rows, metrics=["accuracy"], labels=LABELS, seed_of=[1, 1, 2])
    with pytest.raises(DataError, match=r"query '1' of user 'u' is missing or repeated"):
        score_predictions(rows, metrics=["accuracy"], labels=LABELS, seed_of=[1, 1, 1])


# Holm -------------------------------------------------------------------------------------------------------------


def holm_by_definition(p_values: Sequence[float]) -> list[float]:
    """The smallest level at which the step-down procedure rejects each hypothesis, tried level by level."""

    def rejected(level: float) -> set[int]:
        found: set[int] = set()
        while left := [place for place in range(len(p_values)) if place not in found]:
            smallest = min(left, key=lambda place: p_values[place])
            if p_values[smallest] > level / len(left):
                break
            found.add(smallest)
        return found

    levels = sorted({1.0, *(value * count for value in p_values for count in range(1, len(p_values) + 1))})
    return [
        min((level for level in levels if level <= 1 and place in rejected(level * (1 + 1e-12))), default=1.0)
        for place in range(len(p_values))
    ]


def test_holm_by_hand() -> None:
    # 4 x .01 = .04; 3 x .02 = .06; 2 x .022 = .044, not below .06; 1 x .5
    assert holm([0.022, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_smallest_level_that_rejects(seed: int) -> None:
    rng = random.Random(seed)
    values = [round(rng.random() ** 3, 2) for _ in range(rng.randint(1, 8))]  # rounded: with ties and zeros
    found = holm(values)
    assert found == pytest.approx(holm_by_definition(values))
    assert all(value <= corrected <= 1 for value, corrected in zip(values, found, strict=True))
    assert [corrected for _, corrected in sorted(zip(values, found, strict=True))] == sorted(found)
    shuffled = rng.sample(range(len(values)), len(values))
    assert holm([values[place] for place in shuffled]) == [found[place] for place in shuffled]


def test_holm_keeps_false_findings_below_the_level() -> None:
    rng = random.Random(3)
    families = [[rng.random() for _ in range(10)] for _ in range(2000)]
    assert sum(min(holm(family)) < 0.05 for family in families) / 2000 < 0.065
    assert sum(min(family) < 0.05 for family in families) / 2000 > 0.35  # without the correction


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(value: float) -> None:
    with pytest.raises(DataError, match="cannot correct a p-value of"):
        holm([0.5, value])
