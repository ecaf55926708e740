"""One door to all data formats: find out which it is, read it, and check it against the task.

    lamp        [{"id", "input", "profile"}, ...] with an outputs file beside it     `data.lamp`
    processed   [{"user_id", "profile", "query"}, ...], or one such object a line    `data.processed`
    jsonl       one {"user_id", "input", "output"} object a line                     `data.jsonl`

Example:
    >>> result = read_users("LaMP_2/dev_questions.json", task="lamp-2", skip_malformed=True)
    >>> len(result.users), result.skipped
    (692, ("user '110', query '110': ...",))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mta.data.checks import describe, refuse, refuse_html
from mta.data.jsonl import read_jsonl_users
from mta.data.lamp import read_golds, read_lamp
from mta.data.processed import read_processed
from mta.errors import ConfigError, DataError, unknown_name
from mta.files import read_text
from mta.records import HistoryItem, Query, User
from mta.tasks import get_task
from mta.tasks.task import Task

FORMATS = ("lamp", "processed", "jsonl")
SHOWN_PROBLEMS = 3


class ReadResult(NamedTuple):
    """The users of a file, and what had to be left out."""

    users: list[User]
    skipped: tuple[str, ...]
    """One line for each query or history item that was left out: which, and why."""


def read_users(
    path: Path | str,
    *,
    format: str = "auto",
    golds: Path | None = None,
    need_golds: bool = False,
    skip_malformed: bool = False,
    task: Task | str | None = None,
    queries_per_user: int = 0,
) -> ReadResult:
    """Read users from a file of any known format.

    With a task, every query must parse, every gold answer of a task with labels must be one of them,
    and every history item must have the task's fields.

    Args:
        path: the data file.
        format: "lamp", "processed", "jsonl", or "auto" to find out from the first record.
        golds: outputs file of the LaMP format, if it is not beside `path`.
        need_golds: raise if a query has no gold answer.
        skip_malformed: leave out and list what does not fit the task, instead of raising.
        task: what to check against, or its id, for example "lamp-2"; None checks the form only.
        queries_per_user: for "jsonl": answered lines of each user to hold out as queries.

    Raises:
        ConfigError: `golds` or `queries_per_user` with a format that has no use for it.
        NotFound: there is no such format or task.
        StorageError: a file is missing or unreadable.
        DataError: the file is empty or malformed, does not fit the task, or no format fits it.
    """
    path = Path(path)
    task = get_task(task) if isinstance(task, str) else task
    if format not in (*FORMATS, "auto"):
        raise unknown_name("format", format, (*FORMATS, "auto"))
    found = find_format(path) if format == "auto" else format
    _refuse_useless(found, golds, queries_per_user)
    if found == "lamp":
        users = read_lamp(path, golds=golds, need_golds=need_golds)
    elif found == "processed":
        users = read_processed(path) if golds is None else _with_golds(read_processed(path), golds)
    else:
        users = read_jsonl_users(path, queries_per_user=queries_per_user)
    if not users:
        refuse(str(path), got="no user records", wanted="one or more", step="fetch or write it again")
    result = ReadResult(users, ()) if task is None else check_users(users, task, path, skip_malformed=skip_malformed)
    if need_golds:
        _refuse_unanswered(result.users, path)
    return result


def find_format(path: Path) -> str:
    """Return the format of a data file, judged by its first record.

    Raises:
        StorageError: the file is missing or unreadable.
        DataError: it is empty, a web page, an outputs file, or nothing known.
    """
    refuse_html(path)
    text = read_text(path).lstrip()
    record = _first_record(text, path)
    keys = set(record) if isinstance(record, dict) else set()
    if {"user_id", "profile"} <= keys and "input" not in keys:
        return "processed"
    if "profile" in keys and text.startswith("["):
        return "lamp"
    if {"user_id", "input"} <= keys and text.startswith("{"):
        return "jsonl"
    raise _unknown_format(record, keys, path)


def _unknown_format(record: Any, keys: set[str], path: Path) -> DataError:
    step = "this is an outputs file: give the questions file" if "golds" in keys else f"use one of {', '.join(FORMATS)}"
    wanted = "records with id, input, profile (lamp), user_id, profile, query (processed) or lines with user_id, input"
    return DataError(f"{path}: got {describe(record)} as first record; wanted {wanted}; {step}")


def _first_record(text: str, path: Path) -> Any:
    if not text:
        refuse(str(path), got="an empty file", wanted="user records", step="fetch or write it again")
    start = text.removeprefix("[").lstrip()
    if text.startswith("[") and start.startswith("]"):
        refuse(str(path), got="an empty list", wanted="user records", step="fetch or write it again")
    try:
        return json.JSONDecoder().raw_decode(start)[0]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: the first record is not valid JSON ({error}); wanted a JSON list of objects or one object a "
            "line; the file may be cut off - fetch or write it again"
        ) from error


def _refuse_useless(found: str, golds: Path | None, queries_per_user: int) -> None:
    if golds is not None and found == "jsonl":
        raise ConfigError(
            f"golds={golds} has no use with the jsonl format: there the output is in the line; leave --golds out"
        )
    if queries_per_user and found != "jsonl":
        raise ConfigError(
            f"queries_per_user={queries_per_user} has no use with the {found} format, which has queries of its own; "
            "leave --queries-per-user out"
        )


def _with_golds(users: Sequence[User], golds: Path) -> list[User]:
    """Take the gold answers of processed users from a label file; those without one keep what they had."""
    answers = read_golds(golds)
    asked = {query.query_id for user in users for query in user.queries}
    if not asked & answers.keys():
        refuse(str(golds), got="no id of any query", wanted="gold answers for them", step="check that it belongs here")
    return [
        User(
            user.user_id,
            user.history,
            tuple(Query(query.query_id, query.text, answers.get(query.query_id, query.gold)) for query in user.queries),
        )
        for user in users
    ]


def _refuse_unanswered(users: Sequence[User], path: Path) -> None:
    queries = [query for user in users for query in user.queries]
    without = [query.query_id for query in queries if query.gold is None]
    if without:
        got = f"{len(without)} of {len(queries)} queries without a gold answer (first: {without[0]!r})"
        refuse(str(path), got=got, wanted="one for each", step="name the outputs file, or leave these queries out")


def check_users(users: Sequence[User], task: Task, path: Path, *, skip_malformed: bool = False) -> ReadResult:
    """Check queries, gold answers and history items against a task.

    Args:
        users: as read from `path`.
        task: what they should fit.
        path: for the error message.
        skip_malformed: leave out and list what does not fit; users stay, even without queries.

    Raises:
        DataError: something does not fit (or, when skipping, nothing fits); the message counts and names it.
    """
    problems: dict[int, str] = {}
    for user in users:
        problems.update(_problems(user, task))
    queries = {id(query) for user in users for query in user.queries}
    items = {id(item) for user in users for item in user.history}
    hopeless = any(kind and kind <= problems.keys() for kind in (queries, items))
    if problems and (hopeless or not skip_malformed):
        raise DataError(_problem_text(list(problems.values()), task, path, hopeless=hopeless))
    return ReadResult([_without(user, problems) for user in users], tuple(problems.values()))


def _problems(user: User, task: Task) -> Iterator[tuple[int, str]]:
    """Yield (id of the object, what is wrong with it)."""
    for query in user.queries:
        reason = _query_problem(query, task)
        if reason:
            yield id(query), f"user {user.user_id!r}, query {query.query_id!r}: {reason}"
    for item in user.history:
        missing = [name for name in task.required_fields if name not in item.fields]
        if missing:
            had = ", ".join(item.fields) or "none"
            yield id(item), f"user {user.user_id!r}, history item {item.item_id!r}: no {missing[0]!r}, only {had}"


def _query_problem(query: Query, task: Task) -> str | None:
    try:
        task.parse_query(query.text)
    except DataError as error:
        return str(error)
    if query.gold is not None and task.labels and task.normal_answer(query.gold) not in task.labels:
        return f"got the gold answer {query.gold[:40]!r}; wanted one of {', '.join(task.labels)}"
    return None


def _problem_text(problems: Sequence[str], task: Task, path: Path, *, hopeless: bool) -> str:
    shown = " | ".join(problems[:SHOWN_PROBLEMS]) + (" | ..." if len(problems) > SHOWN_PROBLEMS else "")
    step = (
        "none fits, so check that the file belongs to this task"
        if hopeless
        else "correct these records, or leave them out with --skip-malformed"
    )
    return f"{path}: {len(problems)} records do not fit {task.task_id}: {shown}; {step}"


def _without(user: User, problems: dict[int, str]) -> User:
    if not any(id(part) in problems for part in (*user.queries, *user.history)):
        return user
    history: tuple[HistoryItem, ...] = tuple(item for item in user.history if id(item) not in problems)
    return User(user.user_id, history, tuple(query for query in user.queries if id(query) not in problems))
