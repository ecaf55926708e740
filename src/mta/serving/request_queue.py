"""Requests that wait for a place in the running batch: a bounded queue, fair between people, with deadlines.

People take turns: whoever sends a hundred requests at once waits behind everybody else's first.

Example:
    >>> queue = RequestQueue(most=256, most_each=16)
    >>> queue.put(Waiting(row, owner=("acme", "ada"), deadline=time.monotonic() + 30, listener=listener))
    >>> [waiting] = queue.take(lambda rows: len(rows) <= 32)
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mta.errors import MtaError
from mta.serving.decoding import Row


class Overloaded(MtaError):
    """More requests wait than may; the same request is welcome later."""


class TooLate(MtaError):
    """A request's time was over before its answer was."""


class Listener(Protocol):
    """Who hears of a request's progress; called from the decoding thread, so that it must return at once."""

    def token(self, token: int) -> None:
        """Hear of the next token."""

    def end(self, error: Exception | None) -> None:
        """Hear that no more tokens come, and what went wrong if anything did."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One request with who asked."""

    row: Row
    owner: Hashable
    """Whose turn it is."""
    deadline: float
    """As `time.monotonic` counts."""
    listener: Listener
    cancelled: bool = False
    """Nobody wants the answer any more."""

    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline


class RequestQueue:
    """Waiting requests by person, persons in turn. All methods may be called from any thread.

    Args:
        most: requests that may wait.
        most_each: of these, requests of one person.
    """

    def __init__(self, *, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._of_owner: OrderedDict[Hashable, deque[Waiting]] = OrderedDict()
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def put(self, waiting: Waiting) -> None:
        """Let a request wait.

        Raises:
            Overloaded: too many wait, or too many of this person, or the server stops.
        """
        with self._changed:
            mine = self._of_owner.get(waiting.owner, ())
            if self._closed:
                raise Overloaded("the server is stopping; send the request again to the next one")
            if self._count >= self._most:
                raise Overloaded(f"{self._count} requests wait already; try again later")
            if len(mine) >= self._most_each:
                raise Overloaded(f"{len(mine)} requests for this user wait already; try again later")
            self._of_owner.setdefault(waiting.owner, deque()).append(waiting)
            self._count += 1
            self._changed.notify_all()

    def take(self, fits: Callable[[Sequence[Row]], bool]) -> list[Waiting]:
        """Take as many requests, people in turn, as fit; what was cancelled or is late goes too, and is told so.

        Args:
            fits: says of rows whether they can join together.
        """
        taken: list[Waiting] = []
        with self._changed:
            while self._of_owner:
                owner, mine = next(iter(self._of_owner.items()))
                waiting = mine[0]
                wanted = not (waiting.cancelled or waiting.is_late())
                if wanted and not fits([*(one.row for one in taken), waiting.row]):
                    break
                mine.popleft()
                self._count -= 1
                self._of_owner.move_to_end(owner)
                if not mine:
                    del self._of_owner[owner]
                if wanted:
                    taken.append(waiting)
                else:
                    waiting.listener.end(TooLate("the request waited for its turn until its time was over"))
        return taken

    def wait(self, seconds: float) -> None:
        """Wait until something waits, or so long."""
        with self._changed:
            if not self._count and not self._closed:
                self._changed.wait(seconds)

    def close(self) -> list[Waiting]:
        """Take no more requests and return all that wait."""
        with self._changed:
            self._closed = True
            left = [waiting for mine in self._of_owner.values() for waiting in mine]
            self._of_owner.clear()
            self._count = 0
            self._changed.notify_all()
        return left
