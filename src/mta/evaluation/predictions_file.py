"""Answers as a file: one JSON object a line, or the official LaMP form.

    {"method": "mta", "query_id": "7", "user_id": "ann", "gold": "comedy", "text": "comedy", ...}
    {"task": "LaMP_2", "golds": [{"id": "7", "output": "comedy"}, ...]}

Example:
    >>> write_predictions(Path("predictions.jsonl"), {"mta": rows})
    >>> list(read_predictions(Path("predictions.jsonl")))
    ['mta']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mta.data.lamp import read_golds
from mta.errors import DataError
from mta.files import read_jsonl, read_text, write_jsonl
from mta.records import Prediction

NEEDED = ("query_id", "user_id", "gold", "text")
OFFICIAL_METHOD = "predictions"
"""What the one method of an official file is called."""


def write_predictions(path: Path, methods: Mapping[str, Sequence[Prediction]]) -> None:
    """Write the answers of several methods, one JSON object a line, atomically."""
    write_jsonl(path, [{"method": name, **asdict(row)} for name, rows in methods.items() for row in rows])


def read_predictions(path: Path, *, golds: Path | None = None) -> dict[str, list[Prediction]]:
    """Read answers by method, from either form.

    The official form names no people: there every query counts as a person of its own.

    Args:
        path: the answers.
        golds: official outputs file; its gold answers replace those in `path`. The official form needs it.

    Raises:
        StorageError: a file is missing or unreadable.
        DataError: a file is malformed, or an answer has no gold answer.
    """
    answers = read_golds(golds) if golds else None
    official = '"golds"' in read_text(path)[:400]
    found = _official(path) if official else _lines(path)
    if answers is not None:
        found = {name: [_with_gold(row, answers, path, golds) for row in rows] for name, rows in found.items()}
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
    known = {item.name for item in fields(Prediction)}
    methods: dict[str, list[Prediction]] = {}
    for number, value in read_jsonl(path):
        _check_line(value, known, f"{path}, line {number}")
        values = dict(value)
        methods.setdefault(values.pop("method", OFFICIAL_METHOD), []).append(Prediction(**values))
    return methods


def _check_line(value: Any, known: set[str], where: str) -> None:
    wanted = f"an object with the texts {', '.join(NEEDED)}"
    if not isinstance(value, dict):
        raise DataError(f"{where}: got {type(value).__name__}; wanted {wanted}; write the answers again")
    bad = [name for name in NEEDED if not isinstance(value.get(name), str)]
    bad += sorted(set(value) - known - {"method"})
    if bad or not isinstance(value.get("method", ""), str):
        raise DataError(
            f"{where}: {', '.join(bad) or 'method'} is missing, no text, or unknown; wanted {wanted}; the file may "
            "be of another kind - write the answers again with `mta generate`"
        )


def _with_gold(row: Prediction, answers: Mapping[str, str], path: Path, golds: Path | None) -> Prediction:
    if row.query_id not in answers:
        raise DataError(
            f"{golds} has no gold answer for query {row.query_id!r} of {path}; check that both belong to the same split"
        )
    return replace(row, gold=answers[row.query_id])
