"""Scores as the authors' scripts compute them, beside the official ones; for whoever must reproduce them.

Where they differ: empty answers are dropped before labels are scored, F1 is a mean over the labels that happen to
occur, and ROUGE uses a stemmer. The official scores are in `mta.metrics`.

Example:
    >>> released_scores(get_task("lamp-2"), predictions)
    {'accuracy': 0.5, 'f1': 0.41}
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mta.metrics import score
from mta.records import Prediction
from mta.tasks.task import Task


def released_scores(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Score answers with gold answers; {} where nothing is left to score.

    Args:
        task: what was asked.
        predictions: answers of one method.
    """
    if task.kind == "label":
        return _label_scores([row for row in predictions if row.text.strip()])
    if not predictions:
        return {}
    if task.kind == "rating":
        texts, golds = [row.text for row in predictions], [row.gold for row in predictions]
        return score(("mae", "rmse"), texts, golds, labels=task.labels)
    return _rouge_scores(predictions)


def _label_scores(rows: Sequence[Prediction]) -> dict[str, float]:
    if not rows:
        return {}
    occurring = sorted({row.text for row in rows} | {row.gold for row in rows})
    scores = [_f1(label, rows) for label in occurring]
    right = sum(row.text == row.gold for row in rows)
    return {"accuracy": right / len(rows), "f1": sum(scores) / len(scores)}


def _f1(label: str, rows: Sequence[Prediction]) -> float:
    hits = sum(row.text == label == row.gold for row in rows)
    named = sum(row.text == label for row in rows) + sum(row.gold == label for row in rows)
    return 2 * hits / named


def _rouge_scores(rows: Sequence[Prediction]) -> dict[str, float]:
    found = [_stemming_scorer().score(row.gold, row.text) for row in rows]
    return {
        name: sum(one[kind].fmeasure for one in found) / len(found)
        for name, kind in (("rouge_1", "rouge1"), ("rouge_l", "rougeL"))
    }


@functools.lru_cache(maxsize=1)
def _stemming_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk, which a task with labels never needs

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
