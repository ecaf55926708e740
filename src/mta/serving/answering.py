"""One request's way through the server: prompt and adapter, a place in the queue, and tokens as they come.

Example:
    >>> answer = await ask(server, Question(tenant, "ada", text="Which tag ...?"))
    >>> async for piece in answer.pieces():
    ...     print(piece, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from mta.errors import DataError, NotFound
from mta.serving.answer_text import AnswerText
from mta.serving.decoding import GREEDY, Row, Sampling
from mta.serving.people import MTA, Served
from mta.serving.request_queue import Waiting
from mta.serving.server import Server
from mta.serving.tenants import Tenant
from mta.serving.user_store import StoredUser

RAW_TOKENS = 16
"""Tokens made after a raw prompt where none are asked for, as OpenAI's API does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whom and how."""

    tenant: Tenant
    person: str | None
    """Name of the user; None or one that is not there is somebody unknown."""
    text: str
    way: str = MTA
    """One of `people.WAYS`."""
    raw: bool = False
    """The text is the prompt, to be gone on with as it is; otherwise a question in the task's form."""
    max_new_tokens: int | None = None
    """None is what the task allows."""
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


class Answer:
    """An answer that is being made; iterate over `pieces` once."""

    def __init__(self, server: Server, question: Question, served: Served, row: Row) -> None:
        self.served, self.row = served, row
        self.finish_reason = ""
        """"stop" or "length", once all pieces have come."""
        task = server.people.task
        tokens = server.people.base.tokens
        self._text = AnswerText(
            tokens.decode,
            stop=question.stop,
            clean=None if question.raw else task.clean,
            whole=not question.raw and task.kind != "text",
        )
        self._end_ids = server.people.base.end_ids
        self._events: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.waiting = Waiting(
            row,
            owner=(question.tenant.id, question.person),
            deadline=time.monotonic() + server.config.deadline_s,
            listener=self,
        )

    # from the decoding thread

    def token(self, token: int) -> None:
        """Hear of the next token."""
        self._send(token)

    def end(self, error: Exception | None) -> None:
        """Hear that no more tokens come."""
        self._send(error)

    def _send(self, event: int | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.waiting.cancelled = True

    # in the event loop

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text as it grows.

        Raises:
            MtaError: the answer could not be finished.
        """
        try:
            while isinstance(event := await self._events.get(), int):
                if event not in self._end_ids and (piece := self._text.add(event)):
                    yield piece
                if self._text.stopped:
                    break
            if isinstance(event, Exception):
                raise event
            if piece := self._text.finish():
                yield piece
            self.finish_reason = "stop" if self._text.stopped or self.row.ended else "length"
        finally:
            self.waiting.cancelled = True

    async def whole(self) -> str:
        """Return the whole text."""
        return "".join([piece async for piece in self.pieces()])


async def ask(server: Server, question: Question) -> Answer:
    """Find what answers a question and let it wait for its turn.

    Raises:
        DataError: the text is not a question of the task, or too long.
        Overloaded: too many wait.
    """
    if len(question.text) > server.config.most_prompt_chars:
        raise DataError(f"a prompt of {len(question.text)} characters; at most {server.config.most_prompt_chars}")
    served, row = await run_in_threadpool(_prepare, server, question)
    answer = Answer(server, question, served, row)
    server.queue.put(answer.waiting)
    return answer


def _prepare(server: Server, question: Question) -> tuple[Served, Row]:
    people = server.people
    user = _known(server, question)
    most = question.max_new_tokens or (RAW_TOKENS if question.raw else people.task.max_new_tokens)
    if most > server.config.most_new_tokens:
        raise DataError(f"{most} tokens of answer were asked for; at most {server.config.most_new_tokens}")
    served = people.served(user, way=question.way)
    if question.raw:
        prompt = people.raw_prompt(question.text, reserve=most)
    else:
        prompt = people.prompt(user, question.text, way=question.way, reserve=most)
    return served, Row(prompt.prompt, served.adapter, most, question.sampling)


def _known(server: Server, question: Question) -> StoredUser | None:
    if not question.person:
        return None
    try:
        return server.store.find_user(question.tenant, question.person)
    except NotFound:
        return None


def served_note(answer: Answer, person: str | None) -> dict[str, object]:
    """Return what a response says of where it came from."""
    served = answer.served
    anchors = served.match.weights if served.match else ()
    return {"user": person, "served": served.what, "revision": served.revision or None, "anchors": len(anchors)}
