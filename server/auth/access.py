"""Who may call what: the role of every route, and the check of the key that a caller shows, or that
a browser logged in with. Owns both; keys are made and kept in guard/store/keys.py, and how often
they may be used is limits.py's.

Without any key only this machine can reach the server (launch/serve.py sees to that), and
everything is allowed. The refine job's routes have a token of their own: see routes/lent.py.
"""

import asyncio
import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.errors import StoreUnavailable
from guard.store.keys import Key, KeyStore, Role, find
from server.auth.limits import Limits
from server.auth.origin import (
    PAGE_HEADERS,
    SAFE_METHODS,
    by_another_name,
    from_elsewhere,
    is_loopback,
)
from server.auth.sessions import Sessions, in_console, to_login
from server.errors import error_response
from server.routes.headers import with_headers
from server.routes.open import REFINE_PREFIX, path_of

_OPEN = frozenset({"/health", "/metrics", "/ping", "/ready"})
"""For probes and scrapers, which show no key; they tell nothing of any request."""

_GUARD = re.compile(r"/v1/guard(/.*)?|/console(/.*)?", re.DOTALL)
_FOR_ALL = re.compile(r"/console/(login|static/[^/]+)")
_LABELS = re.compile(r"(/v1/guard|/console)/flags/([^/]+/)?label|/console/logout")
_CALLER = "setback.caller"
_LIMIT = "setback.limit"
_ROLE = "setback.role"
_NO_SOCKETS = 1008
_POLL_S = 2.0
_LOCAL = "local"
_log = logging.getLogger("vllm.setback")


def role_of(method: str, path: str) -> Role | None:
    """What a caller of that path must at least be; None for everybody. Reviewers read and label;
    whatever else changes something is for admins."""
    if path in _OPEN or path.startswith(REFINE_PREFIX) or _FOR_ALL.fullmatch(path):
        return None
    if not _GUARD.fullmatch(path):
        return "call"
    return "review" if method in SAFE_METHODS or _LABELS.fullmatch(path) else "admin"


def is_local(options: Namespace) -> bool:
    """Whether a server with vLLM's options is out of others' reach: on this machine alone, or
    behind vLLM's own --api-key."""
    return bool(options.uds or options.api_key or is_loopback(options.host or ""))


def caller_of(request: Request) -> str:
    """Who is calling, for the audit trail."""
    return str(request.scope.get(_CALLER, _LOCAL))


Caller = Annotated[str, Depends(caller_of)]


def role_of_caller(request: Request) -> Role:
    """What the caller is; without keys, all that there is."""
    role: Role = request.scope.get(_ROLE, "admin")
    return role


class Access:
    """The keys in force, as of the last look at the store.

    local: others cannot reach the server, so that it may be open while there is no key. api_key:
    because of vLLM's own --api-key, which guards all under /v1 and nothing else.
    """

    def __init__(self, store: KeyStore, *, local: bool, api_key: bool = False) -> None:
        self._store = store
        self._local = local
        self._api_key = api_key
        self._keys: Sequence[Key] = ()

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        # Revoking the last key closes the server; it does not open it.
        return self._local and not self._keys

    @property
    def keyless(self) -> bool:
        """Whether nothing but their place keeps others away."""
        return self.open and not self._api_key

    @property
    def console(self) -> bool:
        """Whether the console may be served."""
        return self.keyless or not self.open

    def key(self, number: int | None) -> Key | None:
        """The key of that number, unless it is revoked."""
        keys = (key for key in self._keys if key.id == number and key.revoked_at is None)
        return next(keys, None)

    def find(self, secret: str) -> Key | None:
        """The key with that secret, unless it is revoked."""
        return find(self._keys, secret)

    async def refresh(self) -> None:
        """Looks at the store. Raises StoreUnavailable."""
        self._keys = await self._store.list()

    async def watch(self) -> None:
        """Keeps up with the store, for ever; while it fails, the keys stay as they were."""
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                _log.warning("The keys could not be read again: %s", error)


class AccessMiddleware:
    """Named to vLLM with --middleware, outermost: nothing is read of a request before its key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through with its caller's name, or answers 401, 403 or 429."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        access: Access = scope["app"].state.setback.access
        role = role_of(scope.get("method", "GET"), path_of(scope))
        if in_console(path_of(scope)):
            send = with_headers(send, PAGE_HEADERS)
        refusal = _from_outside(scope, access)
        if refusal is None and role is not None and not access.open:
            refusal = _without_key(scope, access, role)
        if refusal is None and _LIMIT in scope:
            refusal, send = await _limited(scope, send)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NO_SOCKETS})
        else:
            await refusal(scope, receive, send)


def _from_outside(scope: Scope, access: Access) -> Response | None:
    """The refusal of what a browser was made to send by a page that is not ours."""
    path, headers = path_of(scope), Headers(scope=scope)
    console = in_console(path)
    if console and not access.console:
        return _forbidden(
            "The console is not behind --api-key; make keys with `setback keys make` and leave "
            "that option out.",
        )
    # A key in a header is nothing that a browser adds by itself; a session and this machine are.
    guard = _GUARD.fullmatch(path) and not path.startswith(REFINE_PREFIX)
    if not console and not (access.keyless and guard):
        return None
    if from_elsewhere(scope.get("method", "GET"), headers):
        return _forbidden("A page of another site may not send this; open the console itself.")
    if access.keyless and by_another_name(headers):
        return _forbidden(
            "Without keys the server is called by the name localhost or 127.0.0.1 only; make one "
            "with `setback keys make`.",
        )
    return None


def _without_key(scope: Scope, access: Access, role: Role) -> Response | None:
    """The refusal of who shows no key, or one that is for less; names the caller otherwise."""
    connection = HTTPConnection(scope)
    key = shown = access.find(_shown(connection.headers))
    console = in_console(path_of(scope))
    if console and key is None:
        sessions: Sessions = scope["app"].state.setback.sessions
        key = access.key(sessions.key_id(connection))
    if key is None and console:
        return to_login(connection)
    if key is None:
        return error_response(
            401,
            "Incorrect or no API key; send one as `Authorization: Bearer sb-...`. "
            "`setback keys make` makes one.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    if not key.may(role):
        return error_response(
            403,
            f"This key is for the role {key.role}; {path_of(scope)} needs {role}.",
            code="insufficient_permissions",
        )
    scope[_CALLER] = f"key {key.id} ({key.name})"
    scope[_ROLE] = key.role
    if shown is not None and shown.requests_per_minute is not None:
        scope[_LIMIT] = shown.id, shown.requests_per_minute
    return None


async def _limited(scope: Scope, send: Send) -> tuple[Response | None, Send]:
    """The refusal of a key that is used too often; and what tells in any response how it stands."""
    limits: Limits = scope["app"].state.setback.limits
    standing = await limits.take(*scope[_LIMIT])
    if standing is None:
        return None, send
    return standing.refusal() if standing.over else None, with_headers(send, standing.headers)


def _forbidden(message: str) -> Response:
    return error_response(403, message, code="forbidden_origin")


def _shown(headers: Headers) -> str:
    """The key as OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else headers.get("x-api-key", "")
