"""Own data: order, hold-out, strange user ids, and lines that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mta.data.jsonl import read_jsonl_users
from mta.errors import ConfigError, DataError
from mta.records import HistoryItem, Query


def own(folder: Path, *lines: Any) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def line(user_id: Any, text: str, output: Any = "out", **keys: Any) -> dict[str, Any]:
    return {"user_id": user_id, "input": text, "output": output, **keys}


def inputs(path: Path, **options: Any) -> list[str]:
    return [item.get("input") for item in read_jsonl_users(path, **options)[0].history]


def test_lines_become_history_and_queries(tmp_path: Path) -> None:
    path = own(tmp_path, line("a", "x", 5), line("b", "y"), {"user_id": "a", "input": "q"}, line("a", "r", None))
    ann, ben = read_jsonl_users(path)
    assert ann.history == (HistoryItem("1", {"input": "x", "output": "5"}),)
    assert ann.queries == (Query("a:3", "q"), Query("a:4", "r"))
    assert (ben.user_id, len(ben.history), ben.queries) == ("b", 1, ())


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ((None, None, None), "xyz"),
        ((3, 1, 2.5), "yzx"),
        ((10, 9, 100), "yxz"),
        (("2021", "2020-06", "2020-06-02"), "yzx"),
        (("2020-01-01T12:00Z", "2020-01-01T13:30+02:00", "2020-01-01"), "zyx"),
        (("2020", "2020", "2019"), "zxy"),
    ],
)
def test_history_is_ordered_by_time(tmp_path: Path, times: tuple[Any, ...], order: str) -> None:
    path = own(tmp_path, *(line("a", text, time=time) for text, time in zip("xyz", times, strict=True)))
    assert "".join(inputs(path)) == order


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((1, "2020"), r"line 2 .*'time': got the text '2020', but the number 1 in line 1"),
        (("2020", None), r"line 2 .*got null, but the text '2020'"),
        (("soon", "2020"), r"line 1 .*got the text 'soon'; wanted an ISO date"),
        ((True, False), r"line 1 .*got the truth value True; wanted an ISO date or a number"),
    ],
)
def test_times_that_cannot_be_ordered_are_refused(tmp_path: Path, times: tuple[Any, ...], words: str) -> None:
    path = own(tmp_path, *(line("a", "x", time=time) for time in times))
    with pytest.raises(DataError, match=words):
        read_jsonl_users(path)


def test_users_may_have_different_kinds_of_time(tmp_path: Path) -> None:
    path = own(tmp_path, line("a", "x", time=1), line("b", "y", time="2020"), line("c", "z"))
    assert [user.history[0].time for user in read_jsonl_users(path)] == ["1", "2020", None]


@pytest.mark.parametrize(("held", "history", "queries"), [(0, "wxyz", ""), (2, "wx", "yz"), (9, "w", "xyz")])
def test_last_items_are_held_out(tmp_path: Path, held: int, history: str, queries: str) -> None:
    path = own(tmp_path, *(line("a", text, text.upper()) for text in "wxyz"))
    user = read_jsonl_users(path, queries_per_user=held)[0]
    assert "".join(item.get("input") for item in user.history) == history
    assert [(query.text, query.gold) for query in user.queries] == [(text, text.upper()) for text in queries]


def test_hold_out_follows_time_and_keeps_open_queries(tmp_path: Path) -> None:
    path = own(tmp_path, line("a", "late", time=9), line("a", "open", None, time=1), line("a", "early", time=2))
    user = read_jsonl_users(path, queries_per_user=1)[0]
    assert [(query.text, query.gold) for query in user.queries] == [("open", None), ("late", "out")]
    assert [item.get("input") for item in user.history] == ["early"]


def test_negative_hold_out_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="queries_per_user is -1"):
        read_jsonl_users(own(tmp_path, line("a", "x")), queries_per_user=-1)


def test_any_user_id_is_kept_as_it_is(tmp_path: Path) -> None:
    ids = ["a/b", "../../etc", "😀", " ", "a:1"]
    users = read_jsonl_users(own(tmp_path, *(line(user_id, "x") for user_id in [*ids, 12])))
    assert [user.user_id for user in users] == [*ids, "12"]


def test_query_ids_never_collide(tmp_path: Path) -> None:
    users = read_jsonl_users(own(tmp_path, line("a:1", "x", None), line("a", "x", None), line("a:1:1", "x", None)))
    ids = [query.query_id for user in users for query in user.queries]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (line("", "x"), "'user_id': got an empty text"),
        (line(None, "x"), "'user_id': got null"),
        ({"input": "x"}, "wanted the key 'user_id'"),
        ({"user_id": "a", "output": "x"}, "wanted the key 'input'"),
        (line("a", "  "), "'input'.*empty text"),
        (line("a", "x", ""), "'output'.*empty text"),
        (line("a", "x", ["y"]), "'output'.*a list of 1"),
        ({"user_id": "a", "input": "x", "ouput": "y"}, "the unknown key 'ouput'"),
        (["a"], "got a list of 1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(DataError, match=r"own\.jsonl, line 2.*" + words):
        read_jsonl_users(own(tmp_path, line("a", "first"), value))


def test_further_keys_beside_an_output_are_ignored(tmp_path: Path) -> None:
    user = read_jsonl_users(own(tmp_path, line("a", "x", "y", channel="mail")))[0]
    assert user.history[0].fields == {"input": "x", "output": "y"}
