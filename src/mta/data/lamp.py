"""The raw LaMP format: a questions file and, beside it, an outputs file with the gold answers.

    dev_questions.json   [{"id", "input", "profile": [{"id", ...}, ...]}, ...]
    dev_outputs.json     {"task": "LaMP_2", "golds": [{"id", "output"}, ...]}

LaMP has one record a question. Records that carry the same `user_id` are one `User`; without that key
every record is a user of its own, called by the question's id. What LaMP calls `profile` is `history`
here. Knows nothing of tasks: whether an input parses is checked in `data.read`.

Example:
    >>> users = read_lamp(Path("LaMP_2/dev_questions.json"))
    >>> users[0].queries[0].gold
    'comedy'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta.data.checks import (
    TIME_KEYS,
    as_object,
    as_text,
    describe,
    first_few,
    history_items,
    read_list,
    refuse,
    refuse_html,
    take,
    take_id,
    take_list,
    take_text,
    unique_ids,
)
from mta.errors import DataError
from mta.files import read_json, write_json
from mta.records import HistoryItem, Query, User

TITLES_KEY = "profile_titles_only"


def outputs_path(questions: Path) -> Path:
    """Return where the gold answers of a questions file belong: `X_questions.json` has `X_outputs.json` beside it."""
    if questions.name.endswith("questions.json"):
        return questions.with_name(questions.name.removesuffix("questions.json") + "outputs.json")
    return questions.with_name(f"{questions.stem}_outputs.json")


def read_lamp(questions: Path, *, golds: Path | None = None, need_golds: bool = False) -> list[User]:
    """Read a raw LaMP questions file and its gold answers.

    Users come in the order of their first record, queries and history in the order of the file (LaMP's
    order is random, not by time). Every field value becomes text; `date` or `time` becomes the item's
    time; an item without `id` is called by its position and repeated ids get "#2", "#3", .... Papers
    under `profile_titles_only` join the history as items `<user_id>-t0`, `<user_id>-t1`, ... with the
    fields title and citation. A record with `user_id` whose `input` is null is a user without a question.

    Args:
        questions: the questions file.
        golds: the outputs file; by default the one beside `questions`, and gold is None if there is none.
        need_golds: raise instead when there are no gold answers.

    Raises:
        StorageError: a named file is missing or unreadable.
        DataError: a file or record is malformed, an id is repeated, questions and gold answers do not
            match one to one, or records of one `user_id` have different histories.
    """
    answers = _find_golds(questions, golds, need_golds=need_golds)
    records = [
        _record(value, index, questions) for index, value in enumerate(read_list(questions, of="LaMP questions"))
    ]
    asked = [record.query for record in records if record.query]
    _refuse_repeated([query.query_id for query in asked], questions, what="question")
    if answers is not None:
        _refuse_mismatch({query.query_id for query in asked}, answers, questions)
    return _group(records, answers or {}, questions)


@dataclass(frozen=True, slots=True)
class _Record:
    """One entry of a questions file, checked."""

    user_id: str
    history: tuple[HistoryItem, ...]
    query: Query | None


def _record(value: Any, index: int, path: Path) -> _Record:
    where = f"{path}, record {index}"
    entry = as_object(value, where=where, of="id, input, profile")
    query_id = take_id(entry, "id", where=where)
    where = f"{where} (id {query_id!r})"
    user_id = take_id(entry, "user_id", where=where) if "user_id" in entry else query_id
    history = [*history_items(take_list(entry, "profile", where=where), where=where)]
    if TITLES_KEY in entry:
        history += _title_items(take_list(entry, TITLES_KEY, where=where), user_id, where)
    silent = "user_id" in entry and take(entry, "input", where=where) is None
    query = None if silent else Query(query_id, take_text(entry, "input", where=where))
    return _Record(user_id, unique_ids(history), query)


def _title_items(entries: list[Any], user_id: str, where: str) -> tuple[HistoryItem, ...]:
    named = [{"id": f"{user_id}-t{k}", **e} if isinstance(e, dict) else e for k, e in enumerate(entries)]
    return history_items(named, where=f"{where}, {TITLES_KEY!r}")


def _find_golds(questions: Path, golds: Path | None, *, need_golds: bool) -> dict[str, str] | None:
    beside = outputs_path(questions)
    if golds is None and not beside.is_file():
        if need_golds:
            raise DataError(
                f"{questions}: no gold answers; wanted the file {beside} beside it; "
                "name the outputs file, or use a split that has one (LaMP's test split does not)"
            )
        return None
    return read_golds(golds or beside)


def read_golds(path: Path) -> dict[str, str]:
    """Read a LaMP outputs file as query id -> gold answer.

    Raises:
        StorageError: the file is missing or unreadable.
        DataError: it is malformed or repeats an id.
    """
    refuse_html(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list):
        wanted = 'an object {"task": ..., "golds": [{"id", "output"}, ...]}'
        refuse(str(path), got=describe(content), wanted=wanted, step="check which file holds the gold answers")
    pairs = [_gold(value, index, path) for index, value in enumerate(content["golds"])]
    _refuse_repeated([query_id for query_id, _ in pairs], path, what="gold answer")
    return dict(pairs)


def _gold(value: Any, index: int, path: Path) -> tuple[str, str]:
    where = f"{path}, gold {index}"
    entry = as_object(value, where=where, of="id, output")
    query_id = take_id(entry, "id", where=where)
    return query_id, as_text(take(entry, "output", where=where), where=f"{where} (id {query_id!r})", name="output")


def _refuse_repeated(ids: list[str], path: Path, *, what: str) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        refuse(
            str(path),
            got=f"{len(repeated)} {what} ids more than once: {first_few(repeated)}",
            wanted=f"each {what} id once",
            step="remove the copies",
        )


def _refuse_mismatch(asked: set[str], answers: Mapping[str, str], path: Path) -> None:
    unanswered, unasked = sorted(asked - answers.keys()), sorted(answers.keys() - asked)
    if unanswered or unasked:
        parts = [
            f"{len(ids)} {what} ({first_few(ids)})"
            for ids, what in (
                (unanswered, "questions without a gold answer"),
                (unasked, "gold answers without a question"),
            )
            if ids
        ]
        refuse(
            str(path),
            got=" and ".join(parts),
            wanted="the same ids in the questions and outputs files",
            step="check that both belong to the same task and split",
        )


def _group(records: Sequence[_Record], answers: Mapping[str, str], path: Path) -> list[User]:
    histories: dict[str, tuple[HistoryItem, ...]] = {}
    queries: dict[str, list[Query]] = {}
    for index, record in enumerate(records):
        if histories.setdefault(record.user_id, record.history) != record.history:
            refuse(
                f"{path}, record {index}",
                got=f"another history for user {record.user_id!r} than in that user's earlier record",
                wanted="one history a user",
                step="make them equal, or take the key user_id out so that every record is a user of its own",
            )
        asked = queries.setdefault(record.user_id, [])
        if record.query:
            asked.append(Query(record.query.query_id, record.query.text, answers.get(record.query.query_id)))
    return [User(user_id, history, tuple(queries[user_id])) for user_id, history in histories.items()]


def write_lamp(users: Sequence[User], questions_path: Path, *, task_name: str) -> None:
    """Write users as a raw LaMP pair: the questions file and, if there are gold answers, the outputs file beside it.

    One record a query, with the extra key `user_id`; a user without queries becomes a record whose
    `input` is null. `read_lamp` gives the same users back.

    Args:
        users: the people to write.
        questions_path: where the questions go; the outputs go to `outputs_path(questions_path)`.
        task_name: LaMP's name of the task for the outputs file, for example "LaMP_2".

    Raises:
        DataError: a query id is used twice, or only some of the queries have a gold answer.
        StorageError: the files cannot be written.
    """
    write_lamp_files({questions_path: users}, task_name=task_name)


def write_lamp_files(sides: Mapping[Path, Sequence[User]], *, task_name: str) -> None:
    """Write several raw LaMP pairs; nothing is written unless all can be. See `write_lamp`."""
    files = [pair for path, users in sides.items() for pair in _lamp_files(users, path, task_name)]
    for path, content in files:
        write_json(path, content)


def _lamp_files(users: Sequence[User], questions_path: Path, task_name: str) -> list[tuple[Path, Any]]:
    queries = [query for user in users for query in user.queries]
    _refuse_repeated([user.user_id for user in users], questions_path, what="user")
    _refuse_repeated([query.query_id for query in queries], questions_path, what="question")
    golds = [{"id": query.query_id, "output": query.gold} for query in queries if query.gold is not None]
    if golds and len(golds) < len(queries):
        refuse(
            f"cannot write {questions_path}",
            got=f"gold answers for {len(golds)} of {len(queries)} queries",
            wanted="all or none (LaMP's format has no way to leave one out)",
            step="drop the queries without a gold answer first",
        )
    outputs = outputs_path(questions_path)
    _refuse_stale(outputs, golds)
    questions = (questions_path, [record for user in users for record in _questions_of(user)])
    return [questions, (outputs, {"task": task_name, "golds": golds})] if golds else [questions]


def _refuse_stale(outputs: Path, golds: Sequence[object]) -> None:
    if not golds and outputs.exists():
        refuse(
            f"cannot write questions beside {outputs}",
            got="no gold answers, and an outputs file that belongs to other questions",
            wanted="no outputs file there",
            step="remove it or choose another name",
        )


def _questions_of(user: User) -> list[dict[str, Any]]:
    profile = [_profile_item(item) for item in user.history]
    asked: list[tuple[str, str | None]] = [(query.query_id, query.text) for query in user.queries]
    return [
        {"id": query_id, "user_id": user.user_id, "input": text, "profile": profile}
        for query_id, text in asked or [(user.user_id, None)]
    ]


def _profile_item(item: HistoryItem) -> dict[str, str]:
    taken = sorted({"id", *TIME_KEYS} & item.fields.keys())
    if taken:
        wanted = f"fields other than id, {', '.join(TIME_KEYS)}, which mean something else in LaMP's format"
        refuse(f"history item {item.item_id!r}", got=f"a field {taken[0]!r}", wanted=wanted, step="rename it")
    return {"id": item.item_id, **item.fields} | ({} if item.time is None else {"date": item.time})
