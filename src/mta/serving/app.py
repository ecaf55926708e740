"""The server's HTTP: routes, access, limits, and what a watcher of the server reads.

Example:
    >>> uvicorn.run(make_app(server), host="127.0.0.1", port=8000)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mta.errors import MtaError
from mta.serving.api_errors import add_error_handlers, error_body, error_of
from mta.serving.metrics import Metrics
from mta.serving.openai_api import openai_routes
from mta.serving.server import Server
from mta.serving.users_api import user_routes

log = logging.getLogger(__name__)

PROTECTED = "/v1/"
"""Paths below this ask for a tenant."""


LOOPBACK = ("localhost", "127.0.0.1")
"""Names of this machine for itself."""


def make_app(server: Server, *, playground: bool = False, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the app of a running server.

    Args:
        server: what answers.
        playground: whether there is a page to try it at /.
        hosts: names that requests must call the server by; () for any. A server without keys on the loopback should
            insist on `LOOPBACK`: other names come from web pages that have made their own name lead here.
    """
    app = FastAPI(title="mta", summary="Personalized answers from one base model", docs_url="/docs", redoc_url=None)
    metrics = Metrics(server)
    add_error_handlers(app)
    app.include_router(openai_routes(server))
    app.include_router(user_routes(server))

    @app.get("/healthz", tags=["watching"])
    def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["watching"])
    def readyz() -> Response:
        """Say whether requests are answered: the decoder runs and the store can be read."""
        if not server.ready:
            return JSONResponse({"status": "not ready", "reason": "the decoder does not run"}, 503)
        server.store.count_users()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["watching"])
    def read_metrics() -> Response:
        """Return counts and times in Prometheus' text format."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.middleware("http")
    async def with_tenant(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        if request.url.path.startswith(PROTECTED):
            try:
                authorization = request.headers.get("authorization")
                request.state.tenant = await run_in_threadpool(server.gate.tenant, authorization)
            except MtaError as error:
                status, body, headers = error_of(error)
                return JSONResponse(body, status, headers)
        response = await go_on(request)
        metrics.saw(request, response.status_code, time.perf_counter() - started)
        return response

    app.add_middleware(BodyLimit, most_bytes=server.config.most_body_bytes)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    if playground:
        from mta.serving.playground import mount_playground  # slow to import, and not every server has the page

        mount_playground(app, server)
    return app


class BodyLimit:
    """Refuses bodies that are too large, as they come in, whatever they say of their length."""

    def __init__(self, app: ASGIApp, *, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a body that is counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._most:
                said = error_body(f"the body is larger than {self._most} bytes", "too_large", status=413)
                await JSONResponse(said, 413, {"Connection": "close"})(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def once() -> Message:
            nonlocal whole
            if whole is not None:
                given, whole = whole, None
                return given
            return await receive()

        await self._app(scope, once, send)
