"""The thread that answers: it takes requests from the queue and decodes them together, rows joining and leaving.

Example:
    >>> decoder = Decoder(base, queue, most_rows=32, most_tokens=32768)
    >>> decoder.start()
    >>> decoder.stop()
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch

from mta.base_model import BaseModel
from mta.serving.decoding import Row, RunningBatch, cache_tokens
from mta.serving.request_queue import Overloaded, RequestQueue, TooLate, Waiting

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""How long an idle decoder waits before it looks whether it is to stop."""


class Decoder:
    """Decodes what the queue holds, in one thread of its own.

    Args:
        base: the frozen model; nothing else may attach adapters to it meanwhile.
        queue: where requests wait.
        most_rows: rows decoded together.
        most_tokens: tokens of keys and values, padding included, that rows may come to together; a single row may
            always run.
    """

    def __init__(self, base: BaseModel, queue: RequestQueue, *, most_rows: int, most_tokens: int) -> None:
        self._batch, self._queue = RunningBatch(base), queue
        self._most_rows, self._most_tokens = most_rows, most_tokens
        self._asked: dict[int, Waiting] = {}
        """id of a row -> its request"""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.tokens = 0
        """Tokens made since the start."""

    @property
    def running(self) -> int:
        """Rows that are being decoded."""
        return len(self._asked)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._asked) or len(self._queue) > 0

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, patience_s: float = 30.0) -> None:
        """Refuse what waits, finish what runs as far as patience goes, and end the thread."""
        for waiting in self._queue.close():
            waiting.listener.end(Overloaded("the server is stopping; send the request again to the next one"))
        self._stopping.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while not (self._stopping.is_set() and not self._asked):
            self._queue.wait(0 if self._asked else IDLE_S)
            try:
                self._drop_unwanted()
                self._admit()
                if self._asked:
                    self._step()
            except Exception as error:
                log.exception("a batch of %d requests failed", len(self._asked))
                self._fail_all(error)

    def _admit(self) -> None:
        """Let as many requests join as there is room for."""
        taken = self._queue.take(self._fits)
        if not taken:
            return
        self._asked |= {id(waiting.row): waiting for waiting in taken}
        self._batch.join([waiting.row for waiting in taken])

    def _fits(self, new: Sequence[Row]) -> bool:
        rows = [*self._batch.rows, *new]
        return len(rows) == 1 or (len(rows) <= self._most_rows and cache_tokens(rows) <= self._most_tokens)

    def _step(self) -> None:
        for row, token in self._batch.step():
            self.tokens += 1
            waiting = self._asked[id(row)]
            waiting.listener.token(token)
            if row.finished:
                self._end(waiting, None)

    def _drop_unwanted(self) -> None:
        """Take out rows that nobody wants any more, or whose time is over."""
        dropped = [waiting for waiting in self._asked.values() if waiting.cancelled or waiting.is_late()]
        self._batch.leave([waiting.row for waiting in dropped])
        for waiting in dropped:
            self._end(waiting, TooLate(f"the time was over after {len(waiting.row.made)} tokens of answer"))

    def _end(self, waiting: Waiting, error: Exception | None) -> None:
        del self._asked[id(waiting.row)]
        waiting.listener.end(error)

    def _fail_all(self, error: Exception) -> None:
        """Give up the rows that run; the next ones start afresh."""
        self._batch.close()
        for waiting in list(self._asked.values()):
            self._end(waiting, error)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
