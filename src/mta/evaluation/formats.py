"""Scores, p-values and costs as texts.

Example:
    >>> format_cost("adapter_bytes_per_user", 1.9e6)
    '1.9 MB'
"""

from __future__ import annotations

from typing import Any

from mta.evaluation.measures import MEASURES
from mta.evaluation.scores_file import finite

DASH = "–"
COST_TITLES = {
    "updates_per_user": "updates / user",
    "adapter_bytes_per_user": "adapter / user",
    "shared_train_seconds": "shared training",
    "train_seconds": "users' training",
    "predict_seconds": "answer time",
}


def metric_name(name: str) -> str:
    """Return the short name of a metric, for example "Acc"."""
    return MEASURES[name].title if name in MEASURES else name


def metric_title(name: str) -> str:
    """Return the column title of a metric with an arrow towards better, for example "Acc ↑"."""
    if name not in MEASURES:
        return name
    return f"{metric_name(name)} {'↑' if MEASURES[name].higher_is_better else '↓'}"


def format_score(value: float | None) -> str:
    """Write a score to three decimals, large ones to four digits."""
    if value is None:
        return DASH
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def format_interval(pair: tuple[float, float] | None) -> str:
    """Write an interval as "[low, high]", or "" where there is none."""
    return "" if pair is None else f"[{format_score(pair[0])}, {format_score(pair[1])}]"


def format_p(value: float | None) -> str:
    """Write a p-value to three decimals."""
    if value is None:
        return DASH
    return "< .001" if value < 0.001 else f"{value:.3f}"


def format_cost(cost: str, value: Any) -> str:
    """Write a cost of `scores.json` with its unit, or a dash where it is unknown."""
    number = finite(value)
    if number is None:
        return DASH
    if cost == "adapter_bytes_per_user":
        return _bytes(number)
    if cost.endswith("_seconds"):
        return _duration(number)
    return f"{number:,.1f}".removesuffix(".0")


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _duration(seconds: float) -> str:
    if 0 < seconds < 0.1:
        return "< 0.1 s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_signed(value: float | None) -> str:
    """Write a difference to three decimals, with its sign."""
    return DASH if value is None else f"{value:+.3f}"


def format_signed_interval(pair: Any) -> str:
    """Write the interval of a difference, or "" where there is none."""
    return "" if not pair else f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"


def count_text(number: Any, one: str, many: str) -> str:
    """Write a number with what it counts, for example "1 person" or "1,200 people"."""
    return f"{number:,} {one if number == 1 else many}" if isinstance(number, int) else f"{number} {many}"
