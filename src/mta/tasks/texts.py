"""The text work that tasks share: cutting words, finding the payload of a raw input, laying out fields.

Everything is a plain function with keyword settings, made into a task's function with `functools.partial`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

from mta.errors import DataError
from mta.records import HistoryItem

_WORD = re.compile(r"\S+")


def cut_words(text: str, count: int) -> str:
    """Keep the first `count` whitespace-separated words and the layout between them; outer space goes.

    Example:
        >>> cut_words("one  two three", 2)
        'one  two'
    """
    end = 0
    for word in islice(_WORD.finditer(text), count):
        end = word.end()
    return text[:end].strip()


def first_line(text: str) -> str:
    """Return the first line that is not blank, without outer space; "" where there is none."""
    return (text.strip().splitlines() or [""])[0].strip()


def opening(text: str) -> str:
    """Quote the start of a text for an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parse_after(raw: str, *, name: str, marker: re.Pattern[str], field: str, shape: str) -> Mapping[str, str]:
    """Return {field: what follows the marker} of a raw input.

    Raises:
        DataError: the marker is not there.
    """
    found = marker.search(raw)
    if found is None:
        raise DataError(
            f"{name} input lacks the {field}: it reads {opening(raw)}, and should read {shape}; "
            "correct or remove this record"
        )
    return {field: raw[found.end() :].strip()}


def need(fields: Mapping[str, str], name: str) -> str:
    """Return one field of an example.

    Raises:
        DataError: the example has no such field.
    """
    if name not in fields:
        had = ", ".join(sorted(fields)) or "none"
        raise DataError(f"the example has no field {name!r} (it has: {had}); build it with the task's parse_query")
    return fields[name]


def framed(fields: Mapping[str, str], *, head: str, field: str, tail: str) -> tuple[str, str, str]:
    """Return the prompt parts of a task whose payload is one field."""
    return head, need(fields, field), tail


def field_query(fields: Mapping[str, str], *, field: str) -> str:
    """Return the one field that BM25 searches with."""
    return need(fields, field)


def labelled(item: HistoryItem, words: int, *, layout: tuple[tuple[str, str], ...]) -> str:
    """Lay out an item as "Label: text Label: text", each field cut to `words`; blank fields go with their label."""
    shown = ((label, cut_words(item.get(name), words)) for label, name in layout)
    return " ".join(f"{label}: {text}" for label, text in shown if text)


def joined(item: HistoryItem, *, names: tuple[str, ...]) -> str:
    """Join the named fields of an item with spaces; blank ones are left out."""
    return " ".join(text for text in (item.get(name).strip() for name in names) if text)
