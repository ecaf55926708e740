"""The NLL at other people's temperature: against a slow search, and what it must not depend on."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from mta.baselines.text_temperature import at_temperature, choose_temperature
from mta.candidates import TEMPERATURES
from mta.errors import DataError
from mta.evaluation.calibration import LABEL_GRID, calibrated_nats
from mta.evaluation.statistics import paired_difference, score_predictions
from mta.records import Prediction

LABELS = ["a", "b", "c"]


def made(people: int, *, sureness: float, seed: int = 0) -> list[Prediction]:
    """Answers whose scores say the truth at temperature `sureness`."""
    rng, rows = random.Random(seed), []
    for person in range(people):
        for query in range(1 + person % 4):
            honest = {label: rng.gauss(0, 1.5) for label in LABELS}
            gold = max(LABELS, key=lambda label: honest[label] - math.log(rng.expovariate(1)))
            scores = {label: sureness * honest[label] for label in LABELS}
            rows.append(
                Prediction(f"q{query}", f"u{person}", gold, "a", label="a", nll=nats(scores, gold), label_scores=scores)
            )
    return rows


def nats(scores: dict[str, float], gold: str, temperature: float = 1.0) -> float:
    return math.log(sum(math.exp(score / temperature) for score in scores.values())) - scores[gold] / temperature


def slow(rows: list[Prediction]) -> list[float]:
    found = []
    for row in rows:
        others = [other for other in rows if other.user_id != row.user_id]
        best = min(
            LABEL_GRID,
            key=lambda t: (round(sum(nats(o.label_scores, o.gold, t) for o in others), 9), abs(math.log(t))),
        )
        found.append(nats(row.label_scores, row.gold, best))
    return found


@pytest.mark.parametrize("sureness", [0.3, 1.0, 6.0])
def test_each_answer_is_read_at_the_temperature_that_fits_the_others(sureness: float) -> None:
    rows = made(25, sureness=sureness)
    assert calibrated_nats(rows).tolist() == pytest.approx(slow(rows))


def test_sureness_is_taken_out() -> None:
    """The same knowledge told six times too surely scores nearly the same, while the plain NLL suffers."""
    honest, loud = made(60, sureness=1.0), made(60, sureness=6.0)
    plain = [np.mean([row.nll for row in rows]) for rows in (honest, loud)]
    calm = [calibrated_nats(rows).mean() for rows in (honest, loud)]
    assert plain[1] > plain[0] + 0.5
    assert calm[1] == pytest.approx(calm[0], abs=0.02)


def test_one_persons_own_answers_play_no_part_and_one_alone_is_read_as_told() -> None:
    rows = made(12, sureness=4.0)
    worst = min(rows[0].label_scores, key=lambda label: rows[0].label_scores[label])
    wrong = [replace(rows[0], gold=worst), *rows[1:]]
    alone = [row for row in rows if row.user_id == "u3"]
    assert calibrated_nats(alone).tolist() == pytest.approx([row.nll for row in alone])
    before, after = (temperature_of(found[0], calibrated_nats(found)[0]) for found in (rows, wrong))
    assert before == after, "the first row is u0's"
    moved = zip(calibrated_nats(rows)[1:], calibrated_nats(wrong)[1:], strict=True)
    assert any(one != two for one, two in moved), "others are read at a temperature to which u0 has contributed"


def temperature_of(row: Prediction, found: float) -> list[float]:
    return [t for t in LABEL_GRID if nats(row.label_scores, row.gold, t) == pytest.approx(found)]


def texts(people: int, *, sureness: float) -> list[Prediction]:
    """Answers of two tokens that a model likes `sureness` times too much or too little."""
    rng, rows = random.Random(3), []
    for person in range(people):
        for query in range(1 + person % 3):
            honest = [{word: rng.gauss(0, 1.5) for word in LABELS} for _ in range(2)]
            gold = [max(LABELS, key=lambda word: one[word] - math.log(rng.expovariate(1))) for one in honest]
            loud = [{word: sureness * score for word, score in one.items()} for one in honest]
            at = {str(t): sum(nats(one, word, t) for one, word in zip(loud, gold, strict=True)) for t in TEMPERATURES}
            row = Prediction(f"q{query}", f"u{person}", "gold", "a", nll=at["1.0"], nll_tokens=2, nll_at=at)
            rows.append(row)
    return rows


def test_texts_are_read_at_the_temperature_that_fits_the_others() -> None:
    rows = texts(60, sureness=2.2)
    for row, found in zip(rows, calibrated_nats(rows), strict=True):
        others = [other for other in rows if other.user_id != row.user_id]
        best = min(row.nll_at, key=lambda key: sum(other.nll_at[key] for other in others))
        assert found == row.nll_at[best]
        assert float(best) > 1.2
    scores = score_predictions(rows, metrics=["rouge_1"], labels=[]).metrics
    assert scores["nll_calibrated"] == pytest.approx(sum(calibrated_nats(rows)) / (2 * len(rows)))
    assert scores["nll_calibrated"] < scores["nll"]
    chosen = choose_temperature(rows)
    assert chosen == float(min(TEMPERATURES, key=lambda t: sum(row.nll_at[str(t)] for row in rows)))
    assert at_temperature(rows[0], chosen).nll == rows[0].nll_at[str(chosen)]
    assert at_temperature(made(1, sureness=1.0)[0], chosen) == made(1, sureness=1.0)[0], "labels are left alone"
    with pytest.raises(DataError, match="cannot choose a temperature"):
        choose_temperature(made(3, sureness=1.0))


def test_it_is_a_column_of_label_tasks_and_people_may_have_several_ids(caplog: pytest.LogCaptureFixture) -> None:
    rows = made(20, sureness=5.0)
    found = score_predictions(rows, metrics=["accuracy"], labels=LABELS).metrics
    assert found["nll_calibrated"] == pytest.approx(np.mean(slow(rows)))
    assert found["nll_calibrated"] < found["nll"]
    everybody_is_one = {row.user_id: "one" for row in rows}
    with_people = score_predictions(rows, metrics=["accuracy"], labels=LABELS, people=everybody_is_one).metrics
    assert with_people["nll_calibrated"] == pytest.approx(with_people["nll"])
    quiet = made(20, sureness=1.0)
    difference = paired_difference(rows, quiet, "nll_calibrated", labels=LABELS)
    assert abs(difference.difference) < 0.05
    with caplog.at_level(logging.WARNING):
        some = [*rows[:-1], replace(rows[-1], label_scores={})]
        assert "nll_calibrated" not in score_predictions(some, metrics=["accuracy"], labels=LABELS).metrics
    assert "nll_calibrated left out" in caplog.text
