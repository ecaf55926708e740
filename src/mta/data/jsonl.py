"""Your own data: one {"user_id", "input", "output", "time"} object a line.

    {"user_id": "ann", "input": "Thanks for the quick help!", "output": "positive", "time": "2026-01-31"}
    {"user_id": "ann", "input": "Still waiting ..."}

A line with an output is something the person did and joins the history, as an item with the fields
input and output. A line without one (or with null) is a query to answer. `time` is optional.

Example:
    >>> users = read_jsonl_users(Path("mine.jsonl"), queries_per_user=1)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mta.data.checks import as_object, as_text, describe, is_number, refuse, refuse_html, take_id, take_text
from mta.errors import ConfigError
from mta.files import read_jsonl
from mta.records import HistoryItem, Query, User

KEYS = ("user_id", "input", "output", "time")
YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")


def read_jsonl_users(path: Path, *, queries_per_user: int = 0) -> list[User]:
    """Read own data from JSON lines.

    Lines of a user are ordered by time when they have one (ISO dates or numbers, not both; times
    without a zone count as UTC), else as in the file. Users come in the order of their first line.
    Item ids are line numbers; query ids are `<user_id>:<line number>`.

    Args:
        path: the file; user ids may be any text, numbers are turned into text.
        queries_per_user: hold the last n answered lines of each user out as queries with a gold answer;
            at least one answered line stays in the history.

    Raises:
        ConfigError: `queries_per_user` is negative.
        StorageError: the file is missing or unreadable.
        DataError: the file or a line is malformed, or times of one user cannot be ordered.
    """
    if queries_per_user < 0:
        raise ConfigError(f"queries_per_user is {queries_per_user}; wanted 0 (hold nothing out) or more")
    refuse_html(path)
    lines: dict[str, list[_Line]] = {}
    for number, value in read_jsonl(path):
        line = _line(value, number, where=f"{path}, line {number}")
        lines.setdefault(line.user_id, []).append(line)
    return [_user(user_id, _in_order(rows, path), queries_per_user) for user_id, rows in lines.items()]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line, checked."""

    number: int
    user_id: str
    text: str
    answer: str | None
    time: Any


def _line(value: Any, number: int, *, where: str) -> _Line:
    entry = as_object(value, where=where, of="user_id, input, output")
    user_id = take_id(entry, "user_id", where=where)
    text = take_text(entry, "input", where=where)
    output = entry.get("output")
    answer = None if output is None else as_text(output, where=where, name="output")
    if not text.strip() or (answer is not None and not answer.strip()):
        name = "output" if text.strip() else "input"
        step = "correct the line; a query to answer has no output, or null"
        refuse(f"{where}, {name!r}", got="an empty text", wanted="some text", step=step)
    _refuse_misspelt(entry, where)
    return _Line(number, user_id, text, answer, entry.get("time"))


def _refuse_misspelt(entry: dict[str, Any], where: str) -> None:
    unknown = sorted(entry.keys() - set(KEYS))
    if unknown and "output" not in entry:
        refuse(
            where,
            got=f'no "output" but the unknown key {unknown[0]!r}',
            wanted=f"the keys {', '.join(KEYS)}",
            step='correct the spelling, or write "output": null for a query to answer',
        )


def _in_order(lines: Sequence[_Line], path: Path) -> list[_Line]:
    if all(line.time is None for line in lines):
        return list(lines)
    return sorted(lines, key=lambda line: _moment(line, lines[0], path))


def _moment(line: _Line, first: _Line, path: Path) -> float | datetime:
    """Return what a line is ordered by; all lines of a user must be of the first line's kind."""
    where = f"{path}, line {line.number} (user_id {line.user_id!r}), 'time'"
    if _kind_of_time(line.time) != _kind_of_time(first.time):
        got = f"{describe(line.time)}, but {describe(first.time)} in line {first.number}"
        refuse(where, got=got, wanted="one kind of time for a user", step="use ISO dates, or numbers, in every line")
    if isinstance(line.time, str):
        return _parsed(line.time, where)
    if not is_number(line.time):
        refuse(where, got=describe(line.time), wanted="an ISO date or a number", step="correct or leave out the times")
    number: float = line.time
    return number


def _kind_of_time(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return "text"
    return "number" if is_number(value) else "other"


def _parsed(text: str, where: str) -> datetime:
    full = text if not YEAR_OR_MONTH.fullmatch(text) else f"{text}-01-01"[:10]
    try:
        moment = datetime.fromisoformat(full)
    except ValueError:
        refuse(where, got=describe(text), wanted="an ISO date such as 2026-01-31T09:30", step="correct the times")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _user(user_id: str, lines: Sequence[_Line], queries_per_user: int) -> User:
    answered = [line for line in lines if line.answer is not None]
    held = min(queries_per_user, max(len(answered) - 1, 0))
    asked = {line.number for line in answered[len(answered) - held :]}
    history = tuple(_item(line) for line in answered if line.number not in asked)
    queries = (
        Query(f"{user_id}:{line.number}", line.text, line.answer)
        for line in lines
        if line.answer is None or line.number in asked
    )
    return User(user_id, history, tuple(queries))


def _item(line: _Line) -> HistoryItem:
    time = None if line.time is None else as_text(line.time, where=f"line {line.number}", name="time")
    return HistoryItem(str(line.number), {"input": line.text, "output": line.answer or ""}, time)
