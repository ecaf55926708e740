"""The processed files of Per-Pcs and MTA: one record a user, with the history and all queries.

    [{"user_id": 17, "profile": [{...}, ...], "query": [{"id", "input", "gold"}, ...]}, ...]

`user_anchor_candidate.json`, `test_100.json` and the like are such lists; `anchor_user_data.jsonl` has
one such object a line. Knows nothing of tasks.

Example:
    >>> users = read_processed(Path("data/movie_tagging/user_anchor_candidate.json"))
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mta.data.checks import (
    as_object,
    as_text,
    first_few,
    history_items,
    read_list,
    refuse,
    refuse_html,
    take_id,
    take_list,
    take_text,
)
from mta.files import read_jsonl, read_text
from mta.records import Query, User


def read_processed(path: Path) -> list[User]:
    """Read a processed file, as a JSON list or as JSON lines (told apart by the first character).

    A user without `query` has none; a query without `gold`, or with null, has no gold answer; a query
    without `id` is called `<user_id>-<position>`. Items are treated as in `lamp.read_lamp`.

    Raises:
        StorageError: the file is missing or unreadable.
        DataError: the file or a record is malformed, or a user id or a user's query id is repeated.
    """
    refuse_html(path)
    users = [_user(value, where=f"{path}, {place}") for place, value in _records(path)]
    repeated = [user_id for user_id, count in Counter(user.user_id for user in users).items() if count > 1]
    if repeated:
        refuse(
            str(path),
            got=f"{len(repeated)} user ids more than once: {first_few(repeated)}",
            wanted="one record a user",
            step="join or remove the copies",
        )
    return users


def _records(path: Path) -> list[tuple[str, Any]]:
    if read_text(path).lstrip().startswith("{"):
        return [(f"line {number}", value) for number, value in read_jsonl(path)]
    return [(f"record {index}", value) for index, value in enumerate(read_list(path, of="users"))]


def _user(value: Any, *, where: str) -> User:
    entry = as_object(value, where=where, of="user_id, profile, query")
    user_id = take_id(entry, "user_id", where=where)
    where = f"{where} (user_id {user_id!r})"
    asked = take_list(entry, "query", where=where) if "query" in entry else []
    queries = [_query(item, f"{user_id}-{index}", f"{where}, query {index}") for index, item in enumerate(asked)]
    repeated = [name for name, count in Counter(query.query_id for query in queries).items() if count > 1]
    if repeated:
        got = f"query ids more than once: {first_few(repeated)}"
        refuse(where, got=got, wanted="each query id once", step="remove the copies")
    return User(user_id, history_items(take_list(entry, "profile", where=where), where=where), tuple(queries))


def _query(value: Any, default_id: str, where: str) -> Query:
    entry = as_object(value, where=where, of="id, input, gold")
    query_id = take_id(entry, "id", where=where) if "id" in entry else default_id
    gold = entry.get("gold")
    answer = None if gold is None else as_text(gold, where=where, name="gold")
    return Query(query_id, take_text(entry, "input", where=where), answer)
