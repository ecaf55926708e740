"""Processed files of Per-Pcs and MTA, as a list and as lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mta.data.processed import read_processed
from mta.errors import DataError
from mta.records import HistoryItem, Query, User

ANN = {
    "user_id": 17,
    "profile": [{"title": "T", "citation": "C", "date": 2010}],
    "query": [{"id": 5, "input": "i", "gold": "[1]"}, {"input": "j"}, {"input": "k", "gold": None}],
}
BEN = {"user_id": "b/../x", "profile": []}
USERS = [
    User(
        "17",
        (HistoryItem("0", {"title": "T", "citation": "C"}, "2010"),),
        (Query("5", "i", "[1]"), Query("17-1", "j"), Query("17-2", "k")),
    ),
    User("b/../x", ()),
]


def test_list_and_lines_read_the_same(tmp_path: Path) -> None:
    as_list, as_lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    as_list.write_text(json.dumps([ANN, BEN], indent=1))
    as_lines.write_text(json.dumps(ANN) + "\n\n" + json.dumps(BEN) + "\n")
    assert read_processed(as_list) == read_processed(as_lines) == USERS


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([ANN, {**BEN, "user_id": "17"}], "1 user ids more than once: '17'"),
        ([{**ANN, "query": [{"id": 1, "input": "a"}, {"id": "1", "input": "b"}]}], "query ids more than once: '1'"),
        ([{**ANN, "query": {"id": 1}}], r"record 0 \(user_id '17'\), 'query': got an object"),
        ([{**ANN, "query": [{"id": 1}]}], r"query 0: .*wanted the key 'input'"),
        ([{**ANN, "query": [{"input": "a", "gold": []}]}], "'gold': got a list of 0"),
        ([{"user_id": 1}], "wanted the key 'profile'"),
        ([{"profile": []}], "wanted the key 'user_id'"),
        ([7], "record 0: got the number 7"),
        ("<html>", "got the text"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, records: Any, words: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"users\.json.*" + words):
        read_processed(path)


def test_bad_line_and_web_page(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps(ANN) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        read_processed(path)
    path.write_text("  <html>")
    with pytest.raises(DataError, match="HTML page"):
        read_processed(path)
