"""Checking what a data file holds, record by record, so that every reader complains in the same words.

Knows JSON values and where they came from; knows no file format and no task.

Example:
    >>> as_text(5, where="LaMP_3.json, record 0", name="score")
    '5'
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mta.characters import whole_characters
from mta.errors import DataError
from mta.files import read_json, storage_errors
from mta.records import HistoryItem

SHOWN_IDS = 5
TIME_KEYS = ("date", "time")


def refuse(where: str, *, got: str, wanted: str, step: str) -> NoReturn:
    """Raise the DataError for one bad record; `where` names file and record."""
    raise DataError(f"{where}: got {got}; wanted {wanted}; {step}")


def describe(value: Any) -> str:
    """Say in a few words what a JSON value is, without showing long texts."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        keys = ", ".join(repr(key[:30]) for key in list(value)[:SHOWN_IDS])
        return f"an object with keys {keys}" if keys else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" if value else "an empty text"
    return f"{'the truth value' if isinstance(value, bool) else 'the number'} {value!r}"


def first_few(names: list[str]) -> str:
    """Join the first few names and say how many more there are."""
    shown = ", ".join(repr(name) for name in names[:SHOWN_IDS])
    return shown if len(names) <= SHOWN_IDS else f"{shown} and {len(names) - SHOWN_IDS} more"


def refuse_html(path: Path) -> None:
    """Raise a DataError if the file starts like a web page: servers send those with status 200 for wrong addresses."""
    with storage_errors(path, "read"), path.open("rb") as stream:
        start = stream.read(256)
    if looks_like_html(start):
        refuse(str(path), got="an HTML page", wanted="JSON", step="the download address was wrong; fetch it again")


def looks_like_html(start: bytes) -> bool:
    """Whether these first bytes of a file begin with "<", after white space and a byte-order mark."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def read_list(path: Path, *, of: str) -> list[Any]:
    """Read a JSON file that must hold a list; `of` says of what, for the error message."""
    refuse_html(path)
    value = read_json(path)
    if not isinstance(value, list):
        hint = "this looks like the outputs file: give the questions file, "
        step = (hint if isinstance(value, dict) and "golds" in value else "") + "check the file or fetch it again"
        refuse(str(path), got=describe(value), wanted=f"a list of {of}", step=step)
    return value


def as_object(value: Any, *, where: str, of: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object."""
    if not isinstance(value, dict):
        refuse(where, got=describe(value), wanted=f"an object ({of})", step="correct or remove this record")
    return value


def take(record: Mapping[str, Any], name: str, *, where: str) -> Any:
    """Return `record[name]`, or raise a DataError that lists the keys there are."""
    if name not in record:
        refuse(where, got=describe(dict(record)), wanted=f"the key {name!r}", step="correct or remove this record")
    return record[name]


def take_list(record: Mapping[str, Any], name: str, *, where: str) -> list[Any]:
    """Return `record[name]`, which must be a list."""
    value = take(record, name, where=where)
    if not isinstance(value, list):
        refuse(
            f"{where}, {name!r}", got=describe(value), wanted="a list of objects", step="correct or remove this record"
        )
    return value


def take_text(record: Mapping[str, Any], name: str, *, where: str) -> str:
    """Return `record[name]` as text; numbers become text."""
    return as_text(take(record, name, where=where), where=where, name=name)


def take_id(record: Mapping[str, Any], name: str, *, where: str) -> str:
    """Return `record[name]` as a text that is not empty: any id will do, numbers become text."""
    text = take_text(record, name, where=where)
    if not text:
        refuse(f"{where}, {name!r}", got="an empty text", wanted="an id", step="correct or remove this record")
    return text


def as_text(value: Any, *, where: str, name: str) -> str:
    """Turn a text or a number into text (5 and 5.0 give "5"); half surrogate pairs become U+FFFD.

    Raises:
        DataError: it is neither, or a number that is not finite.
    """
    if isinstance(value, str):
        return whole_characters(value)
    if not is_number(value):
        refuse(
            f"{where}, {name!r}", got=describe(value), wanted="text or a number", step="correct or remove this record"
        )
    return str(int(value)) if value == int(value) else str(value)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (true and false are not)."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value not in (math.inf, -math.inf)
        and value == value
    )


def history_item(value: Any, *, where: str, default_id: str) -> HistoryItem:
    """Build a HistoryItem from one profile entry: `id` and `date`/`time` apart, every other key a text field.

    A null field is blank. Without `id` the item is called `default_id`.
    """
    item = as_object(value, where=where, of="one history item")
    texts = {key: "" if entry is None else as_text(entry, where=where, name=key) for key, entry in item.items()}
    item_id = texts.pop("id", "") or default_id
    times = [texts.pop(key, "") for key in TIME_KEYS]
    fields = {whole_characters(key): text for key, text in texts.items()}
    return HistoryItem(item_id, fields, next((time for time in times if time), None))


def history_items(entries: list[Any], *, where: str) -> tuple[HistoryItem, ...]:
    """Build a history from a profile list; items without `id` are called by their position."""
    return unique_ids(
        [
            history_item(entry, where=f"{where}, history item {index}", default_id=str(index))
            for index, entry in enumerate(entries)
        ]
    )


def unique_ids(items: list[HistoryItem]) -> tuple[HistoryItem, ...]:
    """Give repeated item ids the suffix "#2", "#3", ...; the items and their order stay.

    Ids only tell items apart; files repeat them where a person has two records of the same thing, and
    throwing either away would lose history.
    """
    taken = {item.item_id for item in items}
    if len(taken) == len(items):
        return tuple(items)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    return tuple(_renamed(item, seen, taken, counts) for item in items)


def _renamed(item: HistoryItem, seen: set[str], taken: set[str], counts: dict[str, int]) -> HistoryItem:
    name = item.item_id
    if name in seen:
        number = counts.get(name, 1) + 1
        while f"{name}#{number}" in taken:
            number += 1
        counts[name] = number
        name = f"{name}#{number}"
        taken.add(name)
    seen.add(name)
    return HistoryItem(name, item.fields, item.time)
