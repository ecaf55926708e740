"""Damaged files of every format raise errors of this package and nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.data.read import read_users
from mta.data.splits import find_leaks
from mta.errors import DataError, MtaError

LAMP = [
    {"id": "a-1", "user_id": "a", "input": "q: one", "profile": [{"id": "p", "text": "x", "score": 3, "date": 2001}]},
    {"id": 2, "input": "q: two", "profile": [], "profile_titles_only": [{"title": "t", "citation": "c"}]},
]
OUTPUTS = {"task": "LaMP_3", "golds": [{"id": "a-1", "output": "5"}, {"id": 2, "output": 4}]}
PROCESSED = [{"user_id": 1, "profile": [{"text": "x"}], "query": [{"id": "1", "input": "i", "gold": "g"}]}]
OWN = [
    {"user_id": "a", "input": "x", "output": "y", "time": "2020-01-01"},
    {"user_id": "a", "input": "z", "time": "2021"},
]
SOURCES: dict[str, Any] = {"lamp": LAMP, "processed": PROCESSED, "jsonl": OWN}

hostile = st.sampled_from(
    [None, True, 0, -1.5, 10**400, 1e400, float("nan"), "", " ", "\ud800", "<", [], {}, [[]], {"id": None}, [{"id": 1}]]
)
junk = hostile | st.text(max_size=5) | st.floats() | st.lists(hostile, max_size=2)


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) pairs inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@st.composite
def damaged(draw: st.DrawFn, original: Any) -> Any:
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        if draw(st.booleans()):
            del container[key]
        else:
            container[key] = copy.deepcopy(draw(junk))
    return value if draw(st.integers(0, 9)) else draw(junk)


@st.composite
def texts(draw: st.DrawFn, original: Any, *, lines: bool) -> bytes:
    value = draw(damaged(original))
    rows = value if lines and isinstance(value, list) else [value]
    data = "\n".join(map(json.dumps, rows)).encode()
    return data if draw(st.integers(0, 4)) else data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3))


@pytest.mark.parametrize("kind", list(SOURCES))
def test_without_damage_everything_is_read(tmp_path: Path, kind: str) -> None:
    rows = SOURCES[kind]
    lines = rows if kind == "jsonl" else [rows]
    path = tmp_path / "x_questions.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "x_outputs.json").write_text(json.dumps(OUTPUTS))
    names = [user.user_id for user in read_users(path, format=kind).users]
    assert names == {"lamp": ["a", "2"], "processed": ["1"], "jsonl": ["a"]}[kind]


@pytest.mark.parametrize("kind", list(SOURCES))
@pytest.mark.parametrize("auto", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, kind: str, auto: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{kind}"
    folder.mkdir(exist_ok=True)
    path = folder / "x_questions.json"
    path.write_bytes(data.draw(texts(SOURCES[kind], lines=kind == "jsonl")))
    outputs: Path = folder / "x_outputs.json"
    outputs.unlink(missing_ok=True)
    if kind == "lamp" and data.draw(st.booleans()):
        outputs.write_bytes(data.draw(texts(OUTPUTS, lines=False)))
    with contextlib.suppress(MtaError):
        users = read_users(path, format="auto" if auto else kind).users
        find_leaks(users, users)
        names = [user.user_id for user in users]
        json.dumps(names, ensure_ascii=False).encode()
        assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize(("kind", "empty"), [("lamp", "[]"), ("processed", "[]"), ("jsonl", ""), ("jsonl", "\n\n")])
def test_a_file_without_records_is_refused_whether_or_not_its_format_is_named(
    tmp_path: Path, kind: str, empty: str
) -> None:
    path = tmp_path / "x_questions.json"
    path.write_text(empty)
    (tmp_path / "x_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": []}))
    for named in (kind, "auto"):
        with pytest.raises(DataError, match="fetch or write it again"):
            read_users(path, format=named)
