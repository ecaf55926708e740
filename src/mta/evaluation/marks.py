"""Marks of a table: best and second best by point estimate, and the asterisk that a test must stand behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mta.evaluation.measures import MEASURES
from mta.evaluation.scores_file import finite

SIGNIFICANT = 0.05
"""Corrected p-values below this count."""


def best_methods(scores: Mapping[str, Any], metric: str) -> set[str]:
    """Name the methods with the best point estimate to three decimals; none where fewer than two have one."""
    return _placed(scores, metric, place=0, among=2)


def second_methods(scores: Mapping[str, Any], metric: str) -> set[str]:
    """Name the methods with the next best value to three decimals; none where fewer than three have one."""
    return _placed(scores, metric, place=1, among=3)


def _placed(scores: Mapping[str, Any], metric: str, *, place: int, among: int) -> set[str]:
    values = {
        name: round(value, 3)
        for name, method in scores["methods"].items()
        if (value := finite(method["metrics"].get(metric))) is not None
    }
    if len(values) < among or metric not in MEASURES:
        return set()
    ranked = sorted(set(values.values()), reverse=MEASURES[metric].higher_is_better)
    return {name for name, value in values.items() if value in ranked[place : place + 1]}


def judged_method(scores: Mapping[str, Any]) -> str | None:
    """Name the method in question, or None where none was named."""
    judged = scores.get("judged")
    return None if judged is None else str(judged["method"])


def opponents_of(scores: Mapping[str, Any], metric: str) -> list[str] | None:
    """Name the best rival by a metric and the population adapter; None where the table does not hold both."""
    judged = scores.get("judged") or {}
    found = [judged.get("best_rival", {}).get(metric), judged.get("population")]
    return None if None in found else list(map(str, found))


def is_proven(scores: Mapping[str, Any], name: str, metric: str) -> bool:
    """Tell whether `name` is the method in question and the test says that it beats both it must beat.

    Both are the best rival by that metric and the population adapter, and the corrected p-value counts.
    """
    opponents = opponents_of(scores, metric)
    if name != judged_method(scores) or opponents is None:
        return False
    won = {
        row.get("b")
        for row in scores.get("comparisons") or ()
        if row.get("a") == name and row.get("metric") == metric and _is_gain(row)
    }
    return set(opponents) <= won


def _is_gain(row: Mapping[str, Any]) -> bool:
    """Tell whether the corrected test finds `a` better than `b`."""
    difference, p_holm, measure = finite(row.get("difference")), finite(row.get("p_holm")), MEASURES.get(row["metric"])
    if difference is None or p_holm is None or measure is None or p_holm >= SIGNIFICANT:
        return False
    return difference > 0 if measure.higher_is_better else difference < 0
