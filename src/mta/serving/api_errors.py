"""Errors as the API tells them: one table from the package's errors to status codes, one form of the body.

The form is OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mta.errors import (
    AdapterError,
    BankError,
    ConfigError,
    Conflict,
    DataError,
    ModelError,
    MtaError,
    NotFound,
    StorageError,
)
from mta.serving.access import NotAllowed, TooMany
from mta.serving.request_queue import Overloaded, TooLate

log = logging.getLogger(__name__)

STATUS: dict[type[MtaError], tuple[int, str]] = {
    NotAllowed: (401, "invalid_api_key"),
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
    DataError: (400, "invalid_request_error"),
    ConfigError: (400, "invalid_request_error"),
    TooMany: (429, "rate_limit_exceeded"),
    Overloaded: (429, "overloaded"),
    TooLate: (504, "deadline_exceeded"),
    StorageError: (503, "store_unavailable"),
    AdapterError: (500, "damaged_adapter"),
    BankError: (500, "bank_error"),
    ModelError: (500, "model_error"),
}
"""Error -> status and code; the first kind that fits counts."""
RETRY_S = 1
"""Seconds after which an overloaded server is to be asked again."""
AGAIN = (429, 503)
"""Statuses that come with a Retry-After header."""


def error_body(message: str, code: str, *, status: int) -> dict[str, Any]:
    """Return the body of an error."""
    kind = "invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_of(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers of an error; what is no error of ours says nothing of itself."""
    status, code = next((found for kind, found in STATUS.items() if isinstance(error, kind)), (500, "server_error"))
    message = str(error) if isinstance(error, MtaError) else "something went wrong here; the server's log says what"
    wait = error.wait_s if isinstance(error, TooMany) else RETRY_S
    headers = {"Retry-After": str(math.ceil(wait))} if status in AGAIN else {}
    return status, error_body(message, code, status=status), headers


def add_error_handlers(app: FastAPI) -> None:
    """Make an app answer errors in this form."""

    @app.exception_handler(MtaError)
    def ours(request: Request, error: MtaError) -> JSONResponse:
        status, body, headers = error_of(error)
        if status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error)
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestValidationError)
    def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        return JSONResponse(error_body(said, "invalid_request_error", status=400), 400)

    @app.exception_handler(HTTPException)
    def of_routing(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request_error")
        body = error_body(str(error.detail), code, status=error.status_code)
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        status, body, headers = error_of(error)
        return JSONResponse(body, status, headers)
