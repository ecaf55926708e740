"""Answers in files: what is written is read back, and what cannot be scored is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mta.errors import DataError
from mta.evaluation.predictions_file import KEYS, read_predictions, write_predictions
from mta.records import Prediction

ROWS = [
    Prediction("1", "ann", "comedy", "comedy", label="comedy", nll=0.25, label_scores={"comedy": -1.0}),
    Prediction("2", "../bob 🎬", "sci-fi", 'say "no"\nline', nll=None),
]


def test_round_trip_keeps_methods_in_order_and_every_field(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, {"mta": ROWS, "base": ROWS[::-1]})
    found = read_predictions(path)
    assert list(found) == ["mta", "base"]
    assert found == {"mta": ROWS, "base": ROWS[::-1]}


def test_gold_answers_of_a_file_replace_those_in_the_lines(tmp_path: Path) -> None:
    path, golds = tmp_path / "predictions.jsonl", tmp_path / "golds.json"
    write_predictions(path, {"mta": ROWS})
    rows = [{"id": "1", "output": "classic"}, {"id": "2", "output": "romance"}]
    golds.write_text(json.dumps({"task": "LaMP_2", "golds": rows}))
    assert [row.gold for row in read_predictions(path, golds=golds)["mta"]] == ["classic", "romance"]


def line(**values: Any) -> str:
    return json.dumps({"query_id": "1", "user_id": "a", "gold": "b", "text": "c", **values})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no answers"),
        ("[1]\n", "got list"),
        ('{"query_id": "1", "user_id": "a", "gold": "b"}\n', "text is missing"),
        ('{"query_id": 1, "user_id": "a", "gold": "b", "text": "c"}\n', "query_id is the number 1, not text"),
        ('{"query_id": "1", "user_id": "a", "gold": "b", "text": "c", "colour": 1}\n', "colour"),
        ('{"query_id": "1", "user_id": "a", "gold": "", "text": "c"}\n', "--golds"),
        ('{"query_id": "1"', "not valid JSON"),
        (f"{line()}\n{line()}", r"method 'predictions' has 1 queries answered more than once \('1'\)"),
        (line(nll="abc"), "line 1: nll is the text 'abc', not a number or null"),
        (line(nll=float("nan")), "nll is the number nan"),
        (line(nll=10**400), "nll is the number 1000"),
        (line(nll_at={"1": 10**400}), "nll_at is an object"),
        (line(nll=True), "nll is the truth value True"),
        (line(label=5), "label is the number 5, not text or null"),
        (line(nll_tokens=0), "nll_tokens is the number 0, not a whole number from 1"),
        (line(nll_tokens=1.5), "nll_tokens is the number 1.5"),
        (line(label_scores=[1]), "label_scores is a list of 1, not an object of numbers"),
        (line(label_scores={"comedy": "high"}), "label_scores is an object"),
        (line(method=3), "method is the number 3, not text"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_predictions(path)


def write_official(path: Path, answers: dict[str, str]) -> Path:
    rows = [{"id": query_id, "output": text} for query_id, text in answers.items()]
    path.write_text(json.dumps({"task": "LaMP_2", "golds": rows}))
    return path


@pytest.mark.parametrize("form", ["lines", "official"])
@pytest.mark.parametrize(
    ("gold_ids", "said"),
    [
        ("1", r"1 answers without a gold answer \('2'\)"),
        ("123456789", r"got 7 gold answers without an answer \('3', '4', '5', '6', '7' and 2 more\)"),
        ("13", r"1 gold answers without an answer \('3'\) and 1 answers without a gold answer \('2'\)"),
    ],
)
def test_answers_and_golds_must_have_the_same_ids(tmp_path: Path, form: str, gold_ids: str, said: str) -> None:
    path = tmp_path / "predictions"
    if form == "lines":
        write_predictions(path, {"base": ROWS, "mta": ROWS})
    else:
        write_official(path, {"1": "comedy", "2": "sci-fi"})
    golds = write_official(tmp_path / "golds.json", dict.fromkeys(gold_ids, "comedy"))
    with pytest.raises(DataError, match=said):
        read_predictions(path, golds=golds)


def test_every_method_must_have_answered_all(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, {"base": ROWS, "mta": ROWS[:1]})
    golds = write_official(tmp_path / "golds.json", {"1": "comedy", "2": "sci-fi"})
    with pytest.raises(DataError, match=r"method 'mta': got 1 gold answers without an answer \('2'\)"):
        read_predictions(path, golds=golds)


def test_every_key_of_a_prediction_is_checked() -> None:
    assert set(KEYS) == {"method", *(item.name for item in fields(Prediction))}
