"""The authors' way of scoring, against scikit-learn and the stemming scorer itself."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from mta.evaluation.released_scores import released_scores
from mta.records import Prediction
from mta.tasks import get_task


def rows(*pairs: tuple[str, str]) -> list[Prediction]:
    return [Prediction(str(place), "ann", gold, text) for place, (text, gold) in enumerate(pairs)]


def test_labels_drop_empty_answers_and_average_over_those_that_occur() -> None:
    pairs = [("comedy", "comedy"), ("", "action"), ("action", "comedy"), ("romance", "romance"), ("Comedy", "comedy")]
    found = released_scores(get_task("lamp-2"), rows(*pairs))
    texts, golds = zip(*[pair for pair in pairs if pair[0]], strict=True)
    assert found["accuracy"] == 2 / 4
    assert found["f1"] == pytest.approx(f1_score(golds, texts, average="macro", zero_division=0))
    assert released_scores(get_task("lamp-2"), rows(("", "comedy"))) == {}


def test_ratings_are_pooled_errors() -> None:
    found = released_scores(get_task("lamp-3"), rows(("5", "3"), ("4", "4"), ("none", "5")))
    assert found["mae"] == pytest.approx((2 + 0 + 4) / 3)
    assert found["rmse"] == pytest.approx(((4 + 0 + 16) / 3) ** 0.5)


def test_texts_are_compared_by_their_stems() -> None:
    pairs = [("trains running late", "the train runs late"), ("rain", "snow")]
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    wanted = [scorer.score(gold, text) for text, gold in pairs]
    found = released_scores(get_task("lamp-4"), rows(*pairs))
    assert found["rouge_1"] == pytest.approx(sum(one["rouge1"].fmeasure for one in wanted) / 2)
    assert found["rouge_l"] == pytest.approx(sum(one["rougeL"].fmeasure for one in wanted) / 2)
    assert found["rouge_1"] > 0.4, "plurals count as equal"
