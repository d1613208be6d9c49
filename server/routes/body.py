"""Request bodies: their size and encoding. Owns the limit and the decoding, for every route. Does
not parse bodies (guarded/request.py, and vLLM).
"""

import math
import zlib
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response
from server.settings import load_settings

_MIB = 1024**2
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})


class _BodyTooLarge(Exception):
    """The body is larger than the limit, before or after decoding."""


class _BodyCorrupt(Exception):
    """The body is not in the encoding that its header names."""


class BodyMiddleware:
    """Passed to vLLM as --middleware, inside the check of keys. Reads whole bodies before anything
    else does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._limit_mib = load_settings().max_body_mib

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its decoded body, or answers 400, 413 or 415."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
        refuse = partial(_refuse, scope, receive, send)
        if encoding not in _ENCODINGS and encoding != "identity":
            await refuse(415, f"Bodies in the encoding {encoding!r} are not read; use gzip or none")
            return
        limit = int(self._limit_mib * _MIB)
        try:
            body, is_whole = await read_body(receive, limit)
            if is_whole and encoding in _ENCODINGS:
                body = _decoded(body, limit)
        except _BodyTooLarge:
            await refuse(
                413,
                f"The body is larger than {self._limit_mib} MiB; send less, or raise "
                "SETBACK_MAX_BODY_MIB",
            )
        except _BodyCorrupt:
            await refuse(400, f"The body is not {encoding}, as its content-encoding says")
        else:
            await self._app(with_length(scope, len(body)), replayed(body, receive), send)


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, problem: str) -> None:
    code = {413: "request_too_large", 415: "unsupported_encoding"}.get(status, "invalid_body")
    await error_response(status, f"{problem}.", code=code)(scope, receive, send)


async def read_body(receive: Receive, limit: float = math.inf) -> tuple[bytes, bool]:
    """Returns the body, and whether the caller sent all of it. Raises _BodyTooLarge."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts), False
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _BodyTooLarge
        if not message.get("more_body", False):
            return b"".join(parts), True


def _decoded(body: bytes, limit: int) -> bytes:
    """Raises _BodyTooLarge as soon as the limit is reached, and _BodyCorrupt."""
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        decoded = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise _BodyCorrupt from error
    if len(decoded) > limit:
        raise _BodyTooLarge
    if not decoder.eof or decoder.unused_data:
        raise _BodyCorrupt
    return decoded


def with_length(scope: Scope, length: int) -> Scope:
    """Returns the scope with the headers of a body that is decoded and has this length."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    del headers["content-encoding"]
    if "content-length" in headers:
        headers["content-length"] = str(length)
    return scope


def replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body and then any further messages."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
