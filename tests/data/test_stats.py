"""Table 3 numbers, by hand."""

from __future__ import annotations

import pytest

from mta.data.stats import HistoryStats, history_stats
from mta.errors import DataError
from mta.records import HistoryItem, Query, User


def user(name: str, start: int, count: int, queries: int) -> User:
    history = tuple(HistoryItem(str(k), {"text": f"item {k}"}) for k in range(start, start + count))
    return User(name, history, tuple(Query(f"{name}{k}", "q") for k in range(queries)))


def test_counts_by_hand() -> None:
    users = [user("a", 0, 3, 1), user("b", 10, 4, 2), user("c", 20, 11, 0), user("a again", 0, 4, 1)]
    assert history_stats(users) == HistoryStats(
        users=4, people=3, queries=4, items=22, max_items=11, min_items=3, mean_items=5.5, median_items=4.0
    )


def test_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="got no users"):
        history_stats([])
