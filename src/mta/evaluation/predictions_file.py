"""Answers as a file: one JSON object a line, or the official LaMP form.

    {"method": "mta", "query_id": "7", "user_id": "ann", "gold": "comedy", "text": "comedy", ...}
    {"task": "LaMP_2", "golds": [{"id": "7", "output": "comedy"}, ...]}

Example:
    >>> write_predictions(Path("predictions.jsonl"), {"mta": rows})
    >>> list(read_predictions(Path("predictions.jsonl")))
    ['mta']
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mta.data.checks import describe, first_few
from mta.data.lamp import read_golds
from mta.errors import DataError, ModelError
from mta.evaluation.scores_file import finite
from mta.files import read_jsonl, read_text, write_jsonl
from mta.records import Prediction

OFFICIAL_METHOD = "predictions"
"""What the one method of an official file is called."""


def write_predictions(path: Path, methods: Mapping[str, Sequence[Prediction]]) -> None:
    """Write the answers of several methods, one JSON object a line, atomically.

    Raises:
        ModelError: a score is not finite.
    """
    for name, rows in methods.items():
        require_finite(name, rows)
    write_jsonl(path, [{"method": name, **asdict(row)} for name, rows in methods.items() for row in rows])


def require_finite(method: str, rows: Sequence[Prediction]) -> None:
    """Check that the likelihoods and label scores of a method's answers are finite numbers.

    Raises:
        ModelError: one is not; the message names the method and the user.
    """
    for row in rows:
        values = [*row.label_scores.values(), *row.nll_at.values(), *(() if row.nll is None else (row.nll,))]
        if not all(map(math.isfinite, values)):
            raise ModelError(
                f"method {method!r} gave user {row.user_id!r} scores that are not finite (query {row.query_id!r}, the "
                f"true answer's nll is {row.nll}): the numbers are too large for the model; lower the scale of the "
                "merge or the learning rate, or use dtype float32"
            )


def read_predictions(path: Path, *, golds: Path | None = None) -> dict[str, list[Prediction]]:
    """Read answers by method, from either form.

    The official form names no people: there every query counts as a person of its own.

    Args:
        path: the answers.
        golds: official outputs file; its gold answers replace those in `path`. The official form needs it. Every
            method must have answered exactly its queries, as the official scorer demands.

    Raises:
        StorageError: a file is missing or unreadable.
        DataError: a file is malformed, an answer has no gold answer, or a gold answer no answer.
    """
    answers = read_golds(golds) if golds else None
    official = '"golds"' in read_text(path)[:400]
    found = _official(path) if official else _lines(path)
    if answers is not None:
        found = {name: _with_golds(rows, answers, f"{path}, method {name!r}", golds) for name, rows in found.items()}
    for rows in found.values():
        for row in rows:
            if not row.gold:
                raise DataError(
                    f"{path}: the answer to query {row.query_id!r} has no gold answer to be scored against; name the "
                    "outputs file with --golds"
                )
    if not any(found.values()):
        raise DataError(f"{path} holds no answers; wanted at least one line - generate them first")
    return found


def _official(path: Path) -> dict[str, list[Prediction]]:
    rows = [Prediction(query_id, query_id, "", text) for query_id, text in read_golds(path).items()]
    return {OFFICIAL_METHOD: rows}


def _lines(path: Path) -> dict[str, list[Prediction]]:
    methods: dict[str, list[Prediction]] = {}
    for number, value in read_jsonl(path):
        values = _checked(value, f"{path}, line {number}")
        methods.setdefault(values.pop("method", OFFICIAL_METHOD), []).append(Prediction(**values))
    for name, rows in methods.items():
        counts = Counter((row.user_id, row.query_id) for row in rows)
        repeated = [query_id for (_, query_id), count in counts.items() if count > 1]
        if repeated:
            raise DataError(
                f"{path}: method {name!r} has {len(repeated)} queries answered more than once ({first_few(repeated)}); "
                "wanted one answer each; remove the copies, or name the methods apart"
            )
    return methods


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number_or_null(value: Any) -> bool:
    return value is None or finite(value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and None not in map(finite, value.values())


NEEDED = ("query_id", "user_id", "gold", "text")
KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(NEEDED, ("text", _is_text)),
    "method": ("text", _is_text),
    "label": ("text or null", _is_text_or_null),
    "nll": ("a number or null", _is_number_or_null),
    "nll_tokens": ("a whole number from 1", _is_count),
    "label_scores": ("an object of numbers", _is_scores),
    "nll_at": ("an object of numbers", _is_scores),
}
"""Key of a line -> (what it holds, whether a value is that)."""


def _checked(value: Any, where: str) -> dict[str, Any]:
    """Return a line's values, each of its kind."""
    if not isinstance(value, dict):
        raise _bad_line(where, f"got {type(value).__name__}")
    for name in NEEDED:
        if name not in value:
            raise _bad_line(where, f"{name} is missing")
    for name, entry in value.items():
        if name not in KEYS:
            raise _bad_line(where, f"the key {name[:40]!r} is unknown (known: {', '.join(KEYS)})")
        kind, fits = KEYS[name]
        if not fits(entry):
            raise _bad_line(where, f"{name} is {describe(entry)}, not {kind}")
    return dict(value)


def _bad_line(where: str, problem: str) -> DataError:
    return DataError(
        f"{where}: {problem}; wanted an object with the texts {', '.join(NEEDED)}; the file may be of another kind - "
        "write the answers again with `mta generate`"
    )


def _with_golds(
    rows: Sequence[Prediction], answers: Mapping[str, str], where: str, golds: Path | None
) -> list[Prediction]:
    """Give every row its gold answer; both sides must have the same ids, or a part would pass for the whole."""
    said = {row.query_id for row in rows}
    unknown, unanswered = sorted(said - answers.keys()), sorted(answers.keys() - said)
    parts = [
        f"{len(ids)} {what} ({first_few(ids)})"
        for ids, what in ((unanswered, "gold answers without an answer"), (unknown, "answers without a gold answer"))
        if ids
    ]
    if parts:
        raise DataError(
            f"{where}: got {' and '.join(parts)} in {golds}; wanted the same ids in both, because a part of the "
            "queries is not the official score; answer all of them, or give the gold answers of these queries only"
        )
    return [replace(row, gold=answers[row.query_id]) for row in rows]
