"""The person's label prior, against numbers on paper and slow loops."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from mta.baselines.label_prior import (
    STRENGTHS,
    choose_strength,
    label_shares,
    log_prior_ratio,
    own_labels,
    pool_shares,
    prior_fits,
    with_prior,
)
from mta.errors import ConfigError, DataError
from mta.records import HistoryItem, Prediction, User
from mta.tasks import TASKS, get_task

LAMP_2 = get_task("lamp-2")
LAMP_3 = get_task("lamp-3")


def fan(*tags: str, user_id: str = "ann") -> User:
    return User(user_id, tuple(HistoryItem(str(n), {"description": "a", "tag": tag}) for n, tag in enumerate(tags)))


def critic(*scores: str, user_id: str = "ann") -> User:
    return User(user_id, tuple(HistoryItem(str(n), {"text": "a", "score": score}) for n, score in enumerate(scores)))


def scored(scores: Mapping[str, float], gold: str = "a", user_id: str = "ann") -> Prediction:
    return Prediction("q", user_id, gold, "what was generated", label="a", nll=9.0, label_scores=scores)


# shares -----------------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    # two answers "a", one "b", and three more that are spread as the pool's: 1.5 a, 1.2 b, .3 c
    shares = label_shares(["a", "b", "c"], ["a", "b", "a"], smoothing=3.0, towards={"a": 0.5, "b": 0.4, "c": 0.1})
    assert shares == pytest.approx({"a": 3.5 / 6, "b": 2.2 / 6, "c": 0.3 / 6})
    assert label_shares(["a", "b"], ["a"], smoothing=2.0) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert label_shares(["a", "b"], [], smoothing=2.0) == {"a": 0.5, "b": 0.5}


def test_pool_shares_count_items_not_people_and_give_unused_labels_a_share() -> None:
    shares = pool_shares(LAMP_3, [critic("5", "5", "5"), critic("1", "no number", user_id="bob")])
    assert shares == pytest.approx({"1": 2 / 9, "2": 1 / 9, "3": 1 / 9, "4": 1 / 9, "5": 4 / 9})


def test_own_labels_are_read_as_the_task_writes_them() -> None:
    assert own_labels(LAMP_2, fan("Comedy", "nonsense", " action ")) == ["comedy", "action"]
    assert own_labels(LAMP_3, critic("4.0", "4.5", "2")) == ["4", "2"]


# ratio ------------------------------------------------------------------------------------------------------------


def test_ratio_by_hand() -> None:
    shares = {"1": 0.1, "2": 0.1, "3": 0.2, "4": 0.2, "5": 0.4}
    ratio = log_prior_ratio(critic("5", "3", "3"), shares, LAMP_3, smoothing=2.0)
    wanted = {"1": 0.2 / 5 / 0.1, "2": 0.2 / 5 / 0.1, "3": 2.4 / 5 / 0.2, "4": 0.4 / 5 / 0.2, "5": 1.8 / 5 / 0.4}
    assert ratio == pytest.approx({label: math.log(value) for label, value in wanted.items()})


@pytest.mark.parametrize("smoothing", [0.3, 5.0, 200.0])
def test_ratio_is_bayes_rule(smoothing: float) -> None:
    """The pool's shares times the ratio are the person's shares: probabilities again."""
    rng = random.Random(0)
    shares = label_shares(LAMP_2.labels, rng.choices(LAMP_2.labels, k=100), smoothing=15.0)
    user = fan(*rng.choices(LAMP_2.labels[:4], k=9))
    ratio = log_prior_ratio(user, shares, LAMP_2, smoothing)
    assert sum(shares[label] * math.exp(ratio[label]) for label in LAMP_2.labels) == pytest.approx(1.0)


def test_a_person_like_the_pool_or_without_history_changes_nothing() -> None:
    shares = dict(zip(LAMP_3.labels, (0.2, 0.2, 0.2, 0.2, 0.2), strict=True))
    assert log_prior_ratio(critic(*"12345"), shares, LAMP_3) == pytest.approx(dict.fromkeys(LAMP_3.labels, 0.0))
    unequal = dict(zip(LAMP_3.labels, (0.1, 0.1, 0.2, 0.2, 0.4), strict=True))
    like_the_pool = critic(*"1233445555", "1.0", "2", *"3344", *"5555")
    assert log_prior_ratio(like_the_pool, unequal, LAMP_3) == pytest.approx(dict.fromkeys(LAMP_3.labels, 0.0))
    assert log_prior_ratio(critic(), unequal, LAMP_3) == pytest.approx(dict.fromkeys(LAMP_3.labels, 0.0))


def test_smoothing_pulls_towards_the_pool() -> None:
    shares = dict.fromkeys(LAMP_3.labels, 0.2)
    sizes = [log_prior_ratio(critic("5", "5"), shares, LAMP_3, s)["5"] for s in (0.5, 1.0, 5.0, 50.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(0.0, abs=1e-4)


def test_the_order_of_the_history_does_not_matter_and_queries_are_not_looked_at() -> None:
    shares = dict.fromkeys(LAMP_2.labels, 1 / 15)
    one, other = fan("comedy", "action", "comedy"), fan("comedy", "comedy", "action")
    assert log_prior_ratio(one, shares, LAMP_2) == log_prior_ratio(other, shares, LAMP_2)


# predictions ------------------------------------------------------------------------------------------------------


def test_with_prior_by_hand() -> None:
    before = scored({"a": math.log(0.6), "b": math.log(0.3), "c": math.log(0.1)})
    after = with_prior(before, {"a": math.log(0.5), "b": math.log(2.0), "c": 0.0}, 1.0)
    assert (after.label, after.text) == ("b", "b")  # .30, .60, .10
    assert after.nll == pytest.approx(-math.log(0.3))
    assert after.label_scores == pytest.approx({"a": math.log(0.3), "b": math.log(0.6), "c": math.log(0.1)})
    assert (after.query_id, after.user_id, after.gold, after.nll_tokens) == ("q", "ann", "a", 1)
    squared = with_prior(before, {"a": math.log(0.5), "b": math.log(2.0), "c": 0.0}, 2.0)  # .15, 1.2, .1
    assert squared.nll == pytest.approx(-math.log(0.15 / 1.45))


def test_with_prior_against_a_slow_formula() -> None:
    rng = random.Random(1)
    labels = LAMP_2.labels
    for _ in range(20):
        scores = {label: rng.gauss(-20.0, 4.0) for label in labels}
        ratio = {label: rng.gauss(0.0, 1.0) for label in labels}
        strength = rng.uniform(0, 3)
        after = with_prior(scored(scores, gold="romance"), ratio, strength)
        shares = {label: math.exp(scores[label]) * math.exp(ratio[label]) ** strength for label in labels}
        assert after.label == max(labels, key=lambda label: shares[label])
        assert after.nll == pytest.approx(-math.log(shares["romance"] / sum(shares.values())), rel=1e-9)


def test_strength_zero_changes_no_ranking_and_no_score() -> None:
    before = scored({"a": -4.0, "b": -3.0, "c": -8.0})
    after = with_prior(before, {"a": 9.0, "b": -9.0, "c": 0.0}, 0.0)
    assert after.label_scores == before.label_scores
    assert after.label == "b"
    total = math.exp(-4) + math.exp(-3) + math.exp(-8)
    assert after.nll == pytest.approx(-math.log(math.exp(-4) / total))


def test_a_constant_ratio_changes_no_likelihood() -> None:
    before = scored({"a": -4.0, "b": -3.0})
    plain = with_prior(before, {"a": 0.0, "b": 0.0}, 1.0)
    assert with_prior(before, {"a": 0.7, "b": 0.7}, 1.0).nll == pytest.approx(plain.nll)


def test_of_equal_scores_the_first_label_is_chosen() -> None:
    assert with_prior(scored({"a": -2.0, "b": -3.0}), {"a": 0.0, "b": 1.0}, 1.0).label == "a"


def test_without_label_scores_nothing_changes() -> None:
    before = Prediction("q", "ann", "gold", "text", nll=3.0, nll_tokens=2)
    assert with_prior(before, {}, 1.0) is before


def test_an_unknown_gold_has_no_likelihood() -> None:
    assert with_prior(scored({"a": -1.0, "b": -2.0}, gold=""), {"a": 0.0, "b": 0.0}, 1.0).nll is None


# strength ---------------------------------------------------------------------------------------------------------


def test_strength_against_a_slow_search() -> None:
    rng = random.Random(2)
    ratios = {name: {label: rng.gauss(0, 1) for label in "abc"} for name in ("ann", "bob")}
    rows = []
    for number in range(40):
        name = ("ann", "bob")[number % 2]
        scores = {label: rng.gauss(0, 1) for label in "abc"}
        gold = max("abc", key=lambda label: scores[label] + 1.4 * ratios[name][label] + rng.gauss(0, 0.5))
        rows.append(scored(scores, gold=gold, user_id=name))
    choice = choose_strength(rows, ratios)

    def slow(strength: float) -> float:
        total = 0.0
        for row in rows:
            sums = {label: row.label_scores[label] + strength * ratios[row.user_id][label] for label in "abc"}
            total += math.log(sum(map(math.exp, sums.values()))) - sums[row.gold]
        return total / len(rows)

    assert choice.nll_by_strength == pytest.approx({strength: slow(strength) for strength in STRENGTHS})
    assert choice.strength == min(STRENGTHS, key=slow)
    assert choice.strength > 0


def test_strength_and_temperature_together_against_a_slow_search() -> None:
    """Scores three times too sure of themselves: dividing them comes before adding the prior."""
    rng = random.Random(5)
    ratios = {name: {label: rng.gauss(0, 1) for label in "abc"} for name in ("ann", "bob")}
    rows = []
    for number in range(100):
        name = ("ann", "bob")[number % 2]
        scores = {label: rng.gauss(0, 1) for label in "abc"}
        gold = max("abc", key=lambda label: scores[label] + ratios[name][label] - math.log(rng.expovariate(1)))
        rows.append(scored({label: 3 * score for label, score in scores.items()}, gold=gold, user_id=name))
    warm, strengths = [4.0, 1.0, 2.8, 2.0], [0.0, 1.0, 2.0]
    choice = choose_strength(rows, ratios, strengths, warm)

    def slow(strength: float, temperature: float) -> float:
        total = 0.0
        for row in rows:
            own = ratios[row.user_id]
            sums = {label: row.label_scores[label] / temperature + strength * own[label] for label in "abc"}
            total += math.log(sum(map(math.exp, sums.values()))) - sums[row.gold]
        return total / len(rows)

    best = min(((strength, one) for strength in strengths for one in warm), key=lambda pair: slow(*pair))
    assert (choice.strength, choice.temperature) == best
    assert choice.temperature > 1
    assert choice.nll_by_strength == pytest.approx({s: min(slow(s, one) for one in warm) for s in strengths})
    row = rows[0]
    after = with_prior(row, ratios["ann"], *best)
    wanted = {label: row.label_scores[label] / best[1] + best[0] * ratios["ann"][label] for label in "abc"}
    assert after.label_scores == pytest.approx(wanted)
    assert after.nll == pytest.approx(math.log(sum(map(math.exp, wanted.values()))) - wanted[row.gold])


def test_of_equal_temperatures_the_one_nearest_to_1_is_chosen() -> None:
    even = [scored({"a": -1.0, "b": -1.0})]
    assert choose_strength(even, {}, [0.0], [4.0, 0.5, 1.4]).temperature == 1.4, (
        "and nobody needs a prior at strength 0"
    )


def test_ties_go_to_the_smaller_strength_whatever_the_order_of_the_grid() -> None:
    choice = choose_strength([scored({"a": -1.0, "b": -1.0})], {"ann": {"a": 0.0, "b": 0.0}}, [2.0, 1.0, 0.0])
    assert choice.strength == 0.0
    assert list(choice.nll_by_strength) == [0.0, 1.0, 2.0]


def test_a_prior_that_misleads_is_refused() -> None:
    rows = [scored({"a": -1.0, "b": -1.5}), scored({"a": -1.0, "b": -1.5})]
    assert choose_strength(rows, {"ann": {"a": -2.0, "b": 1.0}}).strength == 0.0


def test_rows_without_scores_or_gold_are_passed_over() -> None:
    ratios = {"ann": {"a": 1.0, "b": 0.0}}
    rows = [scored({"a": -1.0, "b": -1.5})]
    more = [*rows, scored({"a": -1.0, "b": -1.5}, gold=""), Prediction("q", "bob", "a", "a")]
    assert choose_strength(more, ratios) == choose_strength(rows, ratios)


# what cannot be ---------------------------------------------------------------------------------------------------


def test_which_tasks_have_a_prior() -> None:
    assert {task_id for task_id in TASKS if prior_fits(get_task(task_id))} == {"lamp-2", "lamp-3"}
    with pytest.raises(ConfigError, match=r"lamp-4.*free text"):
        pool_shares(get_task("lamp-4"), [])
    with pytest.raises(ConfigError, match=r"lamp-1.*something else in every question"):
        log_prior_ratio(fan(), {"[1]": 0.5, "[2]": 0.5}, get_task("lamp-1"))


def test_a_pool_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 pool users.*lamp-2.*tag.*sci-fi"):
        pool_shares(LAMP_2, [fan("nonsense")])


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.inf, math.nan])
def test_smoothing_must_be_a_number_above_zero(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing"):
        log_prior_ratio(critic("5"), dict.fromkeys(LAMP_3.labels, 0.2), LAMP_3, smoothing)


@pytest.mark.parametrize("strength", [-0.5, math.inf, math.nan])
def test_strength_must_be_a_number_from_zero(strength: float) -> None:
    with pytest.raises(ConfigError, match="strength"):
        with_prior(scored({"a": 0.0}), {"a": 0.0}, strength)
    with pytest.raises(ConfigError, match="strength"):
        choose_strength([scored({"a": 0.0})], {"ann": {"a": 0.0}}, [0.0, strength])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_a_number_above_zero(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        with_prior(scored({"a": 0.0}), {"a": 0.0}, 1.0, temperature)
    with pytest.raises(ConfigError, match="temperature"):
        choose_strength([scored({"a": 0.0})], {"ann": {"a": 0.0}}, [0.0], [1.0, temperature])


def test_shares_of_another_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing.*'1'.*1, 2, 3, 4, 5"):
        log_prior_ratio(critic("5"), {"comedy": 1.0}, LAMP_3)
    with pytest.raises(ConfigError, match=r"0\.0.*'2'"):
        log_prior_ratio(critic("5"), {"1": 0.4, "2": 0.0, "3": 0.2, "4": 0.2, "5": 0.2}, LAMP_3)
    with pytest.raises(ConfigError, match=r"prior ratio.*'b'"):
        with_prior(scored({"a": 0.0, "b": 0.0}), {"a": 0.0}, 1.0)
    with pytest.raises(DataError, match="'z'"):
        label_shares(["a", "b"], ["a", "z"], smoothing=1.0)


def test_nothing_to_choose_on_is_refused() -> None:
    with pytest.raises(DataError, match="none of 1 predictions"):
        choose_strength([Prediction("q", "ann", "a", "a")], {})
    with pytest.raises(DataError, match="'ann'"):
        choose_strength([scored({"a": 0.0})], {"bob": {"a": 0.0}})
    with pytest.raises(ConfigError, match="0 must be among"):
        choose_strength([scored({"a": 0.0})], {"ann": {"a": 0.0}}, [1.0])
