"""The one door: which format a file has, and what does not fit the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mta.data.read import find_format, read_users
from mta.errors import ConfigError, DataError, NotFound
from mta.tasks import TASKS

LAMP = {"id": "1", "input": "i", "profile": []}
PROCESSED = {"user_id": "1", "profile": [], "query": []}
OWN = {"user_id": "1", "input": "i"}
MOVIES = TASKS["lamp-2"]
ASK = f"Which tag does this movie relate to? tags: [{', '.join(MOVIES.labels)}] description: "


def put(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def movies(folder: Path, *texts: str, tags: str = "comedy", item: dict[str, str] | None = None) -> Path:
    profile = [item or {"description": "d", "tag": "action"}]
    questions = [{"id": str(k), "user_id": "u", "input": text, "profile": profile} for k, text in enumerate(texts)]
    put(
        folder / "m_outputs.json",
        {"task": "LaMP_2", "golds": [{"id": str(k), "output": tags} for k in range(len(texts))]},
    )
    return put(folder / "m_questions.json", questions)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([LAMP], "lamp"),
        ([{"user_id": 3, **LAMP}], "lamp"),
        ([PROCESSED], "processed"),
        (json.dumps(PROCESSED) + "\n" + json.dumps(PROCESSED), "processed"),
        ("\ufeff\n" + json.dumps(OWN) + "\n" + json.dumps(OWN), "jsonl"),
    ],
)
def test_format_is_found(tmp_path: Path, content: Any, wanted: str) -> None:
    assert find_format(put(tmp_path / "f", content)) == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "an empty file"),
        ("[ ]", "an empty list"),
        ("<html>", "an HTML page"),
        ({"task": "LaMP_2", "golds": []}, "this is an outputs file: give the questions file"),
        ([1, 2], "got the number 1 as first record"),
        ([OWN], "keys 'user_id', 'input' as first record"),
        ("id,input\n1,x", "not valid JSON"),
    ],
)
def test_unknown_content_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_format(put(tmp_path / "f", content))


def test_each_format_is_read(tmp_path: Path) -> None:
    assert read_users(put(tmp_path / "a_questions.json", [LAMP])).users[0].queries[0].text == "i"
    assert read_users(put(tmp_path / "b.json", [PROCESSED])).users[0].user_id == "1"
    assert read_users(put(tmp_path / "c.jsonl", OWN), format="jsonl").users[0].queries[0].gold is None


def test_settings_without_use_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "c.jsonl", OWN)
    with pytest.raises(ConfigError, match="golds"):
        read_users(path, golds=path)
    with pytest.raises(ConfigError, match="queries_per_user=2"):
        read_users(put(tmp_path / "b.json", [PROCESSED]), queries_per_user=2)
    with pytest.raises(NotFound, match="unknown format 'csv'; known: auto, jsonl, lamp, processed"):
        read_users(path, format="csv")


def test_need_golds_holds_for_every_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 queries without a gold answer"):
        read_users(put(tmp_path / "c.jsonl", OWN), need_golds=True)


def test_label_file_of_a_processed_file(tmp_path: Path) -> None:
    asked = [{"id": "q", "input": "i"}, {"id": "r", "input": "j", "gold": "old"}]
    path = put(tmp_path / "b.json", [{**PROCESSED, "query": asked}])
    label = put(tmp_path / "label.json", {"task": "x", "golds": [{"id": "q", "output": "new"}]})
    assert [query.gold for query in read_users(path, golds=label).users[0].queries] == ["new", "old"]
    other = put(tmp_path / "other.json", {"task": "x", "golds": [{"id": "z", "output": "new"}]})
    with pytest.raises(DataError, match="no id of any query"):
        read_users(path, golds=other)


def test_queries_that_do_not_parse(tmp_path: Path) -> None:
    path = movies(tmp_path, ASK + "A robot.", "x a robot without any instruction")
    with pytest.raises(DataError, match=r"m_questions\.json: 1 records.*user 'u', query '1'.*--skip-malformed"):
        read_users(path, task=MOVIES)
    users, skipped = read_users(path, task=MOVIES, skip_malformed=True)
    assert [query.query_id for query in users[0].queries] == ["0"]
    assert len(users[0].history) == 1
    assert len(skipped) == 1
    assert skipped[0].startswith("user 'u', query '1': ")


def test_gold_answers_must_be_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gold answer 'western'; wanted one of sci-fi"):
        read_users(movies(tmp_path, ASK + "A robot.", tags="western"), task=MOVIES)
    assert read_users(movies(tmp_path, ASK + "A robot.", tags=" Comedy"), task=MOVIES).skipped == ()


def test_items_must_have_the_fields_of_the_task(tmp_path: Path) -> None:
    path = movies(tmp_path, ASK + "A robot.", item={"text": "a review", "score": "5"})
    for skip in (False, True):  # nothing fits: skipping everything would hide the wrong task
        with pytest.raises(DataError, match=r"no 'description', only text, score.*belongs to this task"):
            read_users(path, task=MOVIES, skip_malformed=skip)


@pytest.mark.parametrize(
    ("folder", "task_id"),
    [
        ("LaMP_1", "lamp-1"),
        ("LaMP_2", "lamp-2"),
        ("LaMP_3", "lamp-3"),
        ("LaMP_3_critics", "lamp-3"),
        ("LaMP_4", "lamp-4"),
        ("LaMP_5", "lamp-5"),
    ],
)
def test_real_files_fit_their_task(lamp_real: Path, folder: str, task_id: str) -> None:
    for side in ("pool", "target"):
        result = read_users(lamp_real / folder / f"{side}_questions.json", task=TASKS[task_id], need_golds=True)
        assert result.users
        assert result.skipped == ()
