"""The numbers that describe a set of users: how many, how much history (the paper's Table 3).

Example:
    >>> history_stats(users).mean_items
    37.5
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mta.data.people import PERSONAL_ITEMS, PersonRule, group_records
from mta.errors import DataError
from mta.records import User


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """Counts of users and of their history items."""

    users: int
    people: int
    """Different people among the users (siblings counted once)."""
    queries: int
    items: int
    max_items: int
    min_items: int
    mean_items: float
    median_items: float


def history_stats(users: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS) -> HistoryStats:
    """Count users, people, queries and history items.

    Args:
        users: at least one.
        rule: what proves one person, `people.rule_for(task_id)` for LaMP tasks.

    Raises:
        DataError: there are no users.
    """
    if not users:
        raise DataError("no statistics: got no users, wanted at least one; check that the data file is not empty")
    lengths = [len(user.history) for user in users]
    return HistoryStats(
        users=len(users),
        people=len(group_records(users, rule=rule)),
        queries=sum(len(user.queries) for user in users),
        items=sum(lengths),
        max_items=max(lengths),
        min_items=min(lengths),
        mean_items=statistics.fmean(lengths),
        median_items=statistics.median(lengths),
    )
