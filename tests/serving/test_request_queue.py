"""The queue of requests: people take turns, what is late or unwanted goes, too many are refused."""

from __future__ import annotations

import time

import pytest

from mta.serving.decoding import Row
from mta.serving.request_queue import Overloaded, RequestQueue, TooLate, Waiting


class Told:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends: list[Exception | None] = []

    def token(self, token: int) -> None:
        self.tokens.append(token)

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)


def waiting(owner: str, *, seconds: float = 60.0) -> Waiting:
    return Waiting(Row((1, 2), None, 3), owner, time.monotonic() + seconds, Told())


def owners(taken: list[Waiting]) -> list[object]:
    return [one.owner for one in taken]


def test_people_take_turns() -> None:
    queue = RequestQueue(most=10, most_each=5)
    for owner in ("ada", "ada", "ada", "bob", "cy", "bob"):
        queue.put(waiting(owner))
    assert owners(queue.take(lambda rows: len(rows) <= 4)) == ["ada", "bob", "cy", "ada"]
    assert owners(queue.take(lambda rows: True)) == ["bob", "ada"]
    assert len(queue) == 0


def test_too_many_are_refused() -> None:
    queue = RequestQueue(most=3, most_each=2)
    queue.put(waiting("ada"))
    queue.put(waiting("ada"))
    with pytest.raises(Overloaded, match="2 requests for this user wait already"):
        queue.put(waiting("ada"))
    queue.put(waiting("bob"))
    with pytest.raises(Overloaded, match="3 requests wait already"):
        queue.put(waiting("cy"))


def test_what_is_late_or_unwanted_goes_without_a_place() -> None:
    queue = RequestQueue(most=9, most_each=9)
    late, unwanted, good = waiting("ada", seconds=-1), waiting("bob"), waiting("cy")
    unwanted.cancelled = True
    for one in (late, unwanted, good):
        queue.put(one)
    assert queue.take(lambda rows: len(rows) <= 1) == [good]
    assert isinstance(late.listener.ends[0], TooLate)  # type: ignore[attr-defined]


def test_a_closed_queue_returns_what_waits_and_takes_nothing() -> None:
    queue = RequestQueue(most=9, most_each=9)
    queue.put(waiting("ada"))
    assert owners(queue.close()) == ["ada"]
    with pytest.raises(Overloaded, match="stopping"):
        queue.put(waiting("ada"))
    queue.wait(60)  # returns at once
