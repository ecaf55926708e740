"""Answers in files: what is written is read back, and what cannot be scored is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mta.errors import DataError
from mta.evaluation.predictions_file import read_predictions, write_predictions
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
    rows = [{"id": "1", "output": "classic"}, {"id": "2", "output": "romance"}, {"id": "3", "output": "comedy"}]
    golds.write_text(json.dumps({"task": "LaMP_2", "golds": rows}))
    assert [row.gold for row in read_predictions(path, golds=golds)["mta"]] == ["classic", "romance"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no answers"),
        ("[1]\n", "got list"),
        ('{"query_id": "1", "user_id": "a", "gold": "b"}\n', "text is missing"),
        ('{"query_id": 1, "user_id": "a", "gold": "b", "text": "c"}\n', "query_id is missing, no text"),
        ('{"query_id": "1", "user_id": "a", "gold": "b", "text": "c", "colour": 1}\n', "colour"),
        ('{"query_id": "1", "user_id": "a", "gold": "", "text": "c"}\n', "--golds"),
        ('{"query_id": "1"', "not valid JSON"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_predictions(path)


def test_answer_without_a_gold_in_the_file_is_refused(tmp_path: Path) -> None:
    path, golds = tmp_path / "predictions.jsonl", tmp_path / "golds.json"
    write_predictions(path, {"mta": ROWS})
    golds.write_text(json.dumps({"task": "LaMP_2", "golds": [{"id": "1", "output": "classic"}]}))
    with pytest.raises(DataError, match="no gold answer for query '2'"):
        read_predictions(path, golds=golds)
