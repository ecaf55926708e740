"""The decoding thread: answers as alone, failures that stay with their batch, time that is over, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from test_decoding import BASE, alone, rows, texts

from mta.serving.decoder import Decoder
from mta.serving.decoding import Row
from mta.serving.request_queue import Overloaded, RequestQueue, TooLate, Waiting

PATIENCE_S = 60.0


class Listener:
    """Hears tokens and the end; can be waited for."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.error: Exception | None = None
        self.began, self.over = threading.Event(), threading.Event()

    def token(self, token: int) -> None:
        self.tokens.append(token)
        self.began.set()

    def end(self, error: Exception | None) -> None:
        assert not self.over.is_set(), "an end is told once"
        self.error = error
        self.over.set()


@pytest.fixture
def queue() -> RequestQueue:
    return RequestQueue(most=100, most_each=100)


@pytest.fixture
def decoder(queue: RequestQueue) -> Iterator[Decoder]:
    made = Decoder(BASE, queue, most_rows=3, most_tokens=10_000)
    yield made
    if made.alive:
        made.stop(patience_s=PATIENCE_S)


def ask(queue: RequestQueue, row: Row, *, seconds: float = PATIENCE_S) -> tuple[Waiting, Listener]:
    listener = Listener()
    waiting = Waiting(row, "ada", time.monotonic() + seconds, listener)
    queue.put(waiting)
    return waiting, listener


def wait_for(*listeners: Listener) -> None:
    assert all(listener.over.wait(PATIENCE_S) for listener in listeners)


def test_more_requests_than_places_are_all_answered_as_alone(queue: RequestQueue, decoder: Decoder) -> None:
    asked = rows(8)
    listeners = [ask(queue, row)[1] for row in asked]
    assert decoder.busy
    decoder.start()
    wait_for(*listeners)
    assert texts(asked) == alone(asked)
    assert [listener.tokens for listener in listeners] == [row.made for row in asked]
    assert all(listener.error is None for listener in listeners)
    assert decoder.tokens == sum(len(row.made) for row in asked)
    while decoder.busy:  # the last end is told before its row is forgotten
        time.sleep(0.01)


def test_a_batch_that_fails_takes_nobody_else_with_it(
    queue: RequestQueue, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        monkeypatch.undo()
        raise RuntimeError("a broken kernel")

    first, second = rows(2)
    monkeypatch.setattr(decoder._batch, "step", broken)
    _, hears = ask(queue, first)
    decoder.start()
    wait_for(hears)
    assert str(hears.error) == "a broken kernel"
    assert decoder.running == 0
    _, hears = ask(queue, second)
    wait_for(hears)
    assert hears.error is None
    assert texts([second]) == alone([second])


@pytest.mark.parametrize("why", ["late", "cancelled"])
def test_a_row_that_nobody_waits_for_leaves_the_others_alone(
    queue: RequestQueue, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    leaving, *others = rows(3)
    waiting, hears = ask(queue, leaving)
    listeners = [ask(queue, row)[1] for row in others]
    step = decoder._batch.step

    def leave_after_one() -> object:
        told = step()
        if why == "late":
            waiting.deadline = 0.0
        else:
            waiting.cancelled = True
        return told

    monkeypatch.setattr(decoder._batch, "step", leave_after_one)
    decoder.start()
    wait_for(hears, *listeners)
    assert isinstance(hears.error, TooLate)
    assert "after 1 tokens" in str(hears.error)
    assert len(hears.tokens) == 1
    assert texts(others) == alone(others)


def test_stopping_finishes_what_runs_and_refuses_what_waits(queue: RequestQueue, decoder: Decoder) -> None:
    asked = rows(8)
    listeners = [ask(queue, row)[1] for row in asked]
    decoder.start()
    assert listeners[0].began.wait(PATIENCE_S)
    decoder.stop(patience_s=PATIENCE_S)
    assert not decoder.alive
    wait_for(*listeners)
    answered = [row for row, listener in zip(asked, listeners, strict=True) if listener.error is None]
    refused = [listener for listener in listeners if listener.error is not None]
    assert texts(answered) == alone(answered)
    assert answered
    assert all(isinstance(listener.error, Overloaded) and not listener.tokens for listener in refused)
    with pytest.raises(Overloaded, match="stopping"):
        ask(queue, rows(1)[0])
