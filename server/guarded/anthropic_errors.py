"""Errors of the Messages API, in Anthropic's shape: `{"type": "error", "error": {type, message}}`.
Owns their types and the rewriting of whole responses, ours and vLLM's alike. Errors inside a stream
are annotate.py's.
"""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.routes.open import path_of

_PREFIX = "/v1/messages"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def anthropic_type(status: int) -> str:
    """Returns Anthropic's name for an HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


class AnthropicErrorMiddleware:
    """Passed to vLLM as --middleware, around everything that answers with an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; rewrites the body of an error."""
        is_messages = scope["type"] == "http" and path_of(scope).startswith(_PREFIX)
        await self._app(scope, receive, _ErrorRewriter(send).send if is_messages else send)


class _ErrorRewriter:
    """Holds the start of an error until its body is known, because the length changes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Sends a message on, now or with the rest of the error."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._start)

    async def _send_error(self, start: Message) -> None:
        body = _rewritten(self._body, start["status"])
        headers = MutableHeaders(raw=list(start["headers"]))
        if "content-length" in headers:
            headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _rewritten(body: bytes, status: int) -> bytes:
    """Returns the error in Anthropic's shape; what is no error of OpenAI's shape stays as it is."""
    try:
        content: Any = json.loads(body)
    except ValueError:
        return body
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or "message" not in error:
        return body
    fields = {**error, "type": anthropic_type(status)}
    return json.dumps({"type": "error", "error": fields}).encode()
