"""The OpenAI-compatible part of the API: models, chat completions, completions.

The person is the request's `user`; the way to be answered is its `model`. Answers carry a field `mta` (and the header
X-MTA-Served) that says what they came from.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from mta.errors import DataError
from mta.serving.answering import Answer, Question, ask, served_note
from mta.serving.api_errors import error_of
from mta.serving.decoding import Sampling
from mta.serving.people import MTA, WAYS
from mta.serving.server import Server

REFUSED: dict[str, object] = {
    "n": 1, "best_of": 1, "logprobs": None, "top_logprobs": None, "echo": False, "suffix": None, "tools": None,
    "functions": None, "response_format": None, "logit_bias": None, "frequency_penalty": 0, "presence_penalty": 0,
}  # fmt: skip
"""Parameters of the original API that would change the answer and are not here -> the value that changes nothing."""
NOTHING: tuple[object, ...] = (None, False, 0, [], {}, {"type": "text"})


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class CommonRequest(BaseModel):
    """What both kinds of completions share."""

    model_config = ConfigDict(extra="allow")

    model: str = MTA
    user: str | None = Field(None, max_length=256)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the texts that end the answer.

        Raises:
            DataError: more than four, or a blank one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or any(not 0 < len(text) <= 256 for text in stops):
            raise DataError("stop: wanted at most 4 texts of 1 to 256 characters")
        return stops

    def sampling(self) -> Sampling:
        """Return how tokens are chosen; without a seed, a new one."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, seed)

    def check(self) -> None:
        """Refuse what would change the answer and is not here.

        Raises:
            DataError: something of the kind was asked for.
        """
        for name, neutral in REFUSED.items():
            value = (self.model_extra or {}).get(name, neutral)
            if value != neutral and value not in NOTHING:
                raise DataError(f"{name} is not supported here; leave it out")


class ChatMessage(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]

    def text(self) -> str:
        """Return the text of the turn.

        Raises:
            DataError: it has parts that are no text.
        """
        if isinstance(self.content, str):
            return self.content
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            raise DataError("messages: only parts of type text are supported")
        return "".join(part["text"] for part in self.content)


class ChatRequest(CommonRequest):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    max_completion_tokens: int | None = Field(None, ge=1)

    def question(self) -> str:
        """Return the conversation as one question: a single turn as it is, several with who says what."""
        if len(self.messages) == 1:
            return self.messages[0].text()
        first, *others = self.messages
        lines = [f"{message.role.capitalize()}: {message.text()}" for message in others]
        if first.role in ("system", "developer"):
            return "\n".join([first.text(), *(lines if len(others) > 1 else [others[0].text()])])
        return "\n".join([f"{first.role.capitalize()}: {first.text()}", *lines])


class CompletionRequest(CommonRequest):
    """Body of /v1/completions."""

    prompt: str | list[str]

    def text(self) -> str:
        """Return the prompt.

        Raises:
            DataError: there is not exactly one.
        """
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) != 1:
            raise DataError(f"{len(self.prompt)} prompts in one request; send one")
        return self.prompt[0]


def openai_routes(server: Server) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["OpenAI-compatible"])

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        """List the ways to be answered."""
        return {"object": "list", "data": [_model(name, server) for name in WAYS]}

    @routes.get("/v1/models/{name}")
    def model(name: str) -> dict[str, Any]:
        """Describe one way to be answered."""
        if name not in WAYS:
            server.people.served(None, way=name)  # raises with the names there are
        return _model(name, server)

    @routes.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a question of the server's task."""
        body.check()
        longest = body.max_completion_tokens or body.max_tokens
        question = _question(body, request, body.question(), longest=longest, raw=False)
        return await _respond(server, body, question, CHAT)

    @routes.post("/v1/completions", response_model=None)
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """Go on from a prompt as it is."""
        body.check()
        question = _question(body, request, body.text(), longest=body.max_tokens, raw=True)
        return await _respond(server, body, question, TEXT)

    return routes


def _model(name: str, server: Server) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(server.started),
        "owned_by": "mta",
        "description": WAYS[name],
        "root": server.people.base.name,
    }


def _question(body: CommonRequest, request: Request, text: str, *, longest: int | None, raw: bool) -> Question:
    return Question(
        tenant=request.state.tenant,
        person=body.user,
        text=text,
        way=body.model,
        raw=raw,
        max_new_tokens=longest,
        sampling=body.sampling(),
        stop=body.stops(),
    )


# responses --------------------------------------------------------------------------------------------------------


class _Form:
    """How one endpoint frames whole answers and pieces."""

    def __init__(self, prefix: str, kind: str, piece_kind: str, whole: Callable[[str], dict[str, Any]],
                 piece: Callable[[str], dict[str, Any]]) -> None:  # fmt: skip
        self.prefix, self.kind, self.piece_kind, self.whole, self.piece = prefix, kind, piece_kind, whole, piece


CHAT = _Form(
    "chatcmpl-", "chat.completion", "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"role": "assistant", "content": text}},
)  # fmt: skip
TEXT = _Form("cmpl-", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text})


async def _respond(server: Server, body: CommonRequest, question: Question, form: _Form) -> Response:
    answer = await ask(server, question)
    note = served_note(answer, question.person)
    head = {
        "id": form.prefix + secrets.token_hex(12),
        "created": int(time.time()),
        "model": body.model,
        "mta": note,
    }
    headers = {"X-MTA-Served": str(note["served"])}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(answer, {**head, "object": form.piece_kind}, form, wants_usage=wants_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    text = await answer.whole()
    choice = {"index": 0, **form.whole(text), "logprobs": None, "finish_reason": answer.finish_reason}
    return JSONResponse({**head, "object": form.kind, "choices": [choice], "usage": _usage(answer)}, headers=headers)


async def _events(answer: Answer, head: dict[str, Any], form: _Form, *, wants_usage: bool) -> AsyncIterator[str]:
    try:
        async for piece in answer.pieces():
            yield _event({**head, "choices": [_choice(form.piece(piece), None)]})
    except Exception as error:  # the status has been sent: all that is left is to say it here
        yield _event(error_of(error)[1])
        return
    last = form.piece("") if form is TEXT else {"delta": {}}
    yield _event({**head, "choices": [_choice(last, answer.finish_reason)]})
    if wants_usage:
        yield _event({**head, "choices": [], "usage": _usage(answer)})
    yield "data: [DONE]\n\n"


def _choice(part: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(answer: Answer) -> dict[str, int]:
    asked, made = len(answer.row.prompt), len(answer.row.made)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
