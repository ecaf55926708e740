"""Questions with the answers of all methods side by side, as in figure 7 of the paper.

Example:
    >>> cases = build_cases(read_predictions(run / "predictions.jsonl"), users=["ml0257"])
    >>> cases[0]["answers"]["mta"]
    'twist ending'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mta.errors import NotFound
from mta.evaluation.statistics import QueryKey
from mta.records import Prediction, User
from mta.tasks.task import Task

COUNT = 3
"""Questions shown where no user is named."""
HISTORY, WORDS = 3, 40
"""Items of the history shown, and words of each field."""
SHOWN_USERS = 5


def build_cases(
    predictions: Mapping[str, Sequence[Prediction]],
    *,
    task: Task | None = None,
    people: Sequence[User] = (),
    users: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Put answers side by side, in the form that `write_report` takes.

    Args:
        predictions: method -> answers.
        task: what was asked, to show histories.
        people: the users, for the text of the questions and the histories; without them answers alone are shown.
        users: user ids, all of whose questions are shown; without them a question each of the first few users,
            preferably one on which the methods disagree.

    Raises:
        NotFound: a named user has no answers.
    """
    answers: dict[QueryKey, dict[str, str]] = {}
    golds: dict[QueryKey, str] = {}
    for name, rows in predictions.items():
        for row in rows:
            answers.setdefault((row.user_id, row.query_id), {})[name] = row.text
            golds[row.user_id, row.query_id] = row.gold
    by_id = {user.user_id: user for user in people}
    return [_case(key, answers[key], golds[key], by_id.get(key[0]), task) for key in _chosen(answers, users)]


def _chosen(answers: Mapping[QueryKey, Mapping[str, str]], users: Sequence[str]) -> list[QueryKey]:
    known = dict.fromkeys(user_id for user_id, _ in answers)
    for user_id in users:
        if user_id not in known:
            some = ", ".join(list(known)[:SHOWN_USERS])
            raise NotFound(f"user {user_id!r} has no answers here; there are {len(known)} users: {some}, ...")
    if users:
        return [key for user_id in users for key in answers if key[0] == user_id]
    first: dict[str, QueryKey] = {}
    for key in sorted(answers, key=lambda key: len(set(answers[key].values())) == 1):  # stable: disagreements first
        first.setdefault(key[0], key)
    return list(first.values())[:COUNT]


def _case(key: QueryKey, answers: Mapping[str, str], gold: str, user: User | None, task: Task | None) -> dict[str, Any]:
    queries = {query.query_id: query for query in user.queries} if user else {}
    return {
        "title": f"User {key[0]}",
        "query": queries[key[1]].text if key[1] in queries else None,
        "gold": gold,
        "answers": dict(answers),
        "history": [task.history_line(item, WORDS) for item in user.history[:HISTORY]] if user and task else [],
    }
