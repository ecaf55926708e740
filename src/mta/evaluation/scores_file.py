"""Reading `scores.json`: its form, checked with an error that names what is wrong, and its values.

Values that are unknown are None; no number is NaN or infinite.

Example:
    >>> scores = check_scores(read_json(run / "scores.json"))
    >>> interval_of(scores["methods"]["mta"], "accuracy")
    (0.42, 0.61)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mta.errors import DataError
from mta.evaluation.measures import MEASURES

HEADER = ("task", "base", "seeds", "people", "queries", "methods")
COSTS = ("updates_per_user", "adapter_bytes_per_user", "shared_train_seconds", "train_seconds", "predict_seconds")


def finite(value: Any) -> float | int | None:
    """Return `value` where it is a finite number, else None: JSON has no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def check_scores(value: Any) -> dict[str, Any]:
    """Return `value` where it has the form of `scores.json`.

    Raises:
        DataError: a part is missing or of another kind; the message says which.
    """
    if not isinstance(value, Mapping):
        raise _unreadable(f"it is {type(value).__name__}, wanted an object")
    missing = [name for name in HEADER if name not in value]
    if missing:
        raise _unreadable(f"it has no {', '.join(missing)}")
    if not isinstance(value["task"], str):
        raise _unreadable(f"'task' is {value['task']!r}, wanted a name")
    if not isinstance(value["methods"], Mapping) or not value["methods"]:
        raise _unreadable("'methods' is not an object with at least one method")
    for name, method in value["methods"].items():
        _check_method(method, f"method {name!r}")
    comparisons = value.get("comparisons") or []
    if not isinstance(comparisons, Sequence) or not all(isinstance(row, Mapping) for row in comparisons):
        raise _unreadable("'comparisons' is not a list of objects")
    for row in comparisons:
        _check_pair(row.get("ci95"), f"the difference {row.get('a')!r} - {row.get('b')!r}")
        for part in ("a", "b", "metric"):
            if not isinstance(row.get(part), str):
                raise _unreadable(f"{part!r} of a comparison is {row.get(part)!r}, wanted a name")
    _check_judged(value.get("judged"))
    _check_card(value.get("run"))
    _check_slices(value.get("slices") or {})
    return dict(value)


def _check_method(method: Any, where: str) -> None:
    if not isinstance(method, Mapping) or not isinstance(method.get("metrics"), Mapping):
        raise _unreadable(f"{where} has no 'metrics'")
    for part in ("ci95", "not_adapted", "by_seed", "seed_sd"):  # some are missing in files of earlier versions
        if not isinstance(method.get(part) or {}, Mapping):
            raise _unreadable(f"{part!r} of {where} is not an object")
    for metric, pair in (method.get("ci95") or {}).items():
        _check_pair(pair, f"{metric!r} of {where}")
    if not isinstance(method.get("seeds", []), list | tuple):
        raise _unreadable(f"'seeds' of {where} is not a list")
    for part in ("chosen_on_pool", "chosen_by_users"):
        chosen = method.get(part, [])
        if not isinstance(chosen, list | tuple) or not all(isinstance(one, Mapping) for one in chosen):
            raise _unreadable(f"'{part}' of {where} is not a list of objects")


def _check_card(card: Any) -> None:
    """Check the parts of the run card that tables and pages read."""
    if card is not None and not isinstance(card, Mapping):
        raise _unreadable("'run' is not an object")
    settings = _object(card, "settings")
    for part in ("adapt", "merge"):
        _object(settings, part)
    _object(_object(settings, "bank"), "train")
    items = _object(card, "history items")
    for side in ("targets", "pool"):
        _object(items, side)


def _object(holder: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """Return an object inside an object, or None where either is not there."""
    part = None if holder is None else holder.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise _unreadable(f"{name!r} in 'run' is not an object")
    return part


def _check_judged(judged: Any) -> None:
    if judged is None:
        return
    if not isinstance(judged, Mapping) or "method" not in judged:
        raise _unreadable("'judged' is not an object with a 'method'")
    if not isinstance(judged.get("best_rival"), Mapping):
        raise _unreadable("'best_rival' in 'judged' is not an object")


def _check_slices(slices: Any) -> None:
    if not isinstance(slices, Mapping) or not all(isinstance(part, Mapping) for part in slices.values()):
        raise _unreadable("'slices' is not an object of objects")
    for partition, labelled in slices.items():
        for label, entry in labelled.items():
            where = f"slice {label!r} of {partition!r}"
            if not isinstance(entry, Mapping) or not {"people", "queries", "methods"} <= entry.keys():
                raise _unreadable(f"{where} has not all of people, queries and methods")
            if not isinstance(entry["methods"], Mapping):
                raise _unreadable(f"'methods' of {where} is not an object")
            for name, method in entry["methods"].items():
                _check_method(method, f"method {name!r} in {where}")


def _check_pair(pair: Any, where: str) -> None:
    if pair is None or (isinstance(pair, list | tuple) and len(pair) == 2 and None not in map(finite, pair)):
        return
    raise _unreadable(f"the interval of {where} is {pair!r}, wanted [low, high] or null")


def _unreadable(why: str) -> DataError:
    return DataError(f"this is not the content of a scores.json: {why}; score the run again to write a new one")


def shown_metrics(scores: Mapping[str, Any]) -> list[str]:
    """List the metrics at least one method has a value for: those known here in their usual order, then others."""
    found = {
        name
        for method in scores["methods"].values()
        for name, value in method["metrics"].items()
        if finite(value) is not None
    }
    return [*(name for name in MEASURES if name in found), *sorted(found - set(MEASURES))]


def interval_of(method: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Return the interval of one metric of a method of `scores.json`, or None where it has none."""
    pair = (method.get("ci95") or {}).get(metric)
    return None if pair is None else (float(pair[0]), float(pair[1]))
