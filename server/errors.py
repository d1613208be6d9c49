"""Errors in OpenAI's format. Owns the status and the body of every guard error and of the server's
own errors. Does not decide when one is raised.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from guard.errors import (
    AdapterConflict,
    AdapterRefused,
    AdapterUnknown,
    CriticUnavailable,
    FlagUnknown,
    GuardError,
    InputBlocked,
    KeyUnknown,
    LeaseHeld,
    LeaseLost,
    PolicyInvalid,
    PolicyRefused,
    PolicyUnknown,
    RunNotStarted,
    RunOver,
    RunUnknown,
    StoreUnavailable,
    TemplateUnusable,
    UnguardedRoute,
    Unsupported,
    VllmIncompatible,
)
from guard.store.text import storable
from server.routes.open import CANNOT_GENERATE, GUARDED, path_of

STATUS: dict[type[GuardError], int] = {
    AdapterConflict: 409,
    AdapterRefused: 409,
    AdapterUnknown: 404,
    CriticUnavailable: 503,
    FlagUnknown: 404,
    InputBlocked: 400,
    KeyUnknown: 404,
    LeaseHeld: 409,
    LeaseLost: 409,
    PolicyInvalid: 500,
    PolicyRefused: 400,
    PolicyUnknown: 503,
    RunNotStarted: 503,
    RunOver: 409,
    RunUnknown: 404,
    StoreUnavailable: 503,
    TemplateUnusable: 500,
    UnguardedRoute: 503,
    Unsupported: 400,
    VllmIncompatible: 500,
}
"""HTTP status by guard error; a test checks that none is missing."""

_NO_ROUTE = (404, 405)
_KINDS = {429: "requests"}
"""OpenAI's error types where they do not follow from the first digit."""
_STORE_FAILED = "The database failed, so nothing was released; the server's log says why."
_log = logging.getLogger("vllm.setback")
_PARAMS: dict[type[GuardError], str] = {InputBlocked: "prompt"}


class ErrorFields(BaseModel):
    """The fields of every error."""

    message: str
    type: str
    param: str | None
    code: str


class Refusal(BaseModel):
    """The body of every error."""

    error: ErrorFields


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal, "description": "The request is wrong, or not allowed."},
    "5XX": {"model": Refusal, "description": "The guard, its engine or its database failed."},
}
"""The error responses of our own routes in /openapi.json."""


@dataclass
class BadRequest(Exception):
    """A request field is wrong. The message says what to send instead."""

    message: str
    param: str
    code: str = "invalid_value"
    status: int = 400


def error_response(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Returns `{"error": {message, type, param, code}}`, as the OpenAI API sends it."""
    # The message may quote the request, and JSON strings may hold what UTF-8 cannot encode.
    fields = storable(_fields(status, message, code, param))
    return JSONResponse({"error": fields}, status_code=status, headers=headers)


def _fields(status: int, message: str, code: str, param: str | None) -> dict[str, Any]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": param, "code": code}


def error_fields(error: GuardError) -> dict[str, Any]:
    """Returns `message`, `type`, `param` and `code` of a guard error.

    What names the database or the machine goes to the log instead.
    """
    message = str(error)
    if isinstance(error, StoreUnavailable):
        _log.error("%s", message)
        message = _STORE_FAILED
    param = getattr(error, "param", None) or _PARAMS.get(type(error))
    return _fields(STATUS[type(error)], message, error.code, param)


def guard_error_response(error: GuardError) -> JSONResponse:
    """Returns the response to a request that failed with a guard error before it began."""
    return JSONResponse({"error": error_fields(error)}, status_code=STATUS[type(error)])


def bad_request_response(error: BadRequest) -> JSONResponse:
    """Returns the response to a request with a wrong field."""
    return error_response(error.status, error.message, code=error.code, param=error.param)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """FastAPI handler for the router's refusals: unknown or closed paths, methods, unreadable
    bodies."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.scope['path']}: {error.detail}."
    if error.status_code not in _NO_ROUTE:
        return error_response(error.status_code, message, code="invalid_request")
    path = path_of(request.scope)
    if f"/v1{path}" in GUARDED | CANNOT_GENERATE:
        message += f" The API is under /v1: set the client's base URL to {_base_url(request)}."
    else:
        message += " Closed routes are opened by SETBACK_OPEN_ROUTES."
    return error_response(error.status_code, message, code="route_unavailable")


def _base_url(request: Request) -> str:
    return f"{request.base_url}v1"


async def on_guard_error(_request: Request, error: Exception) -> JSONResponse:
    """FastAPI handler for GuardError."""
    assert isinstance(error, GuardError)
    return guard_error_response(error)


async def on_bad_request(_request: Request, error: Exception) -> JSONResponse:
    """FastAPI handler for BadRequest."""
    assert isinstance(error, BadRequest)
    return bad_request_response(error)
