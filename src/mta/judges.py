"""People of the pool on whom settings are chosen that no target may decide: temperatures, strengths of a prior.

They have a history and a question whose answer the pool's file holds. A bank may set some aside before anything is
trained (`BankConfig.judges`), so that nothing they are asked through has learned their histories; then their earliest
items can be asked too (`asked_more`).

Example:
    >>> judges = draw_judges(pool, task, most=32)
    >>> left = without_judges(pool, task, bank_config)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mta.config import BankConfig
from mta.data.people import find_people, rule_for
from mta.records import Query, User
from mta.seeds import stable_seed
from mta.tasks.task import Task

MORE_QUESTIONS = 3
"""Of a judge's own items, at most."""


def draw_judges(pool: Sequence[User], task: Task, *, most: int, others_than: Collection[str] = ()) -> list[User]:
    """Return people of the pool with answered queries and a history; queries without an answer are left out.

    Nobody is among them who is one of `others_than` under another id; and of a person's several records one. Which of
    them depends on their ids alone.

    Args:
        pool: users to draw from.
        task: what is asked; it says what proves that two records are one person.
        most: how many at most.
        others_than: user ids who may not judge, for example a bank's anchors.
    """
    users = {user.user_id: user for user in pool}
    barred = set(others_than)
    able = []
    for person in find_people(pool, rule=rule_for(task.task_id)):
        records = [replace(users[name], queries=_answered(users[name])) for name in person if users[name].history]
        asked = sorted((user for user in records if user.queries), key=_draw)
        if asked and barred.isdisjoint(person):
            able.append(asked[0])
    return sorted(able, key=_draw)[:most]


def judges_aside(pool: Sequence[User], task: Task, config: BankConfig) -> list[User]:
    """Return the people whom a bank sets aside: as many as it is asked to, but at most a third of the pool's."""
    if not config.judges:
        return []
    people = find_people(pool, rule=rule_for(task.task_id))
    return draw_judges(pool, task, most=min(config.judges, len(people) // 3))


def without_judges(pool: Sequence[User], task: Task, config: BankConfig) -> list[User]:
    """Return the pool without the people whom a bank sets aside, under whatever id."""
    judges = {user.user_id for user in judges_aside(pool, task, config)}
    people = find_people(pool, rule=rule_for(task.task_id)) if judges else []
    aside = {name for person in people if judges & set(person) for name in person}
    return [user for user in pool if user.user_id not in aside]


def asked_more(judge: User, task: Task) -> User:
    """Return a judge who is also asked about her earliest items, which are then no part of her history.

    At most `MORE_QUESTIONS`, and at most a third of the history. A task whose questions hold more than one text, as
    LaMP-1's, asks no more.
    """
    most = min(MORE_QUESTIONS, len(judge.history) // 3)
    pairs = {pair.item_id: pair for pair in task.pairs(judge, 0).pairs}
    first = [item.item_id for item in judge.history if item.item_id in pairs][:most]
    like = judge.queries[0]
    asked = [
        Query(f"{like.query_id} {name}", text, pairs[name].answer)
        for name in first
        if (text := question_like(like, pairs[name].fields, task))
    ]
    hidden = set(first) if asked else set()
    history = tuple(item for item in judge.history if item.item_id not in hidden)
    return replace(judge, history=history, queries=(*judge.queries, *asked))


def question_like(query: Query, fields: Mapping[str, str], task: Task) -> str | None:
    """Return a question about other fields in the words of a real one; None where that is not one text at its end."""
    parsed = task.parse_query(query.text)
    ((name, value), *others) = parsed.items()
    if others or not query.text.endswith(value):
        return None
    return query.text.removesuffix(value) + fields[name]


def _draw(user: User) -> int:
    return stable_seed(0, "judge", user.user_id)


def _answered(user: User) -> tuple[Query, ...]:
    return tuple(query for query in user.queries if query.gold is not None)
