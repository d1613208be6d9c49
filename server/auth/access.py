"""Access control: the role that each route needs, and the check of the caller's API key or console
session. Owns both. Does not store keys (guard/store/keys.py) or limit their rate (limits.py).

Until the first key is created, only this machine can reach the server (see launch/serve.py), and
everything is allowed. The refine routes have a token of their own (routes/model_access.py).
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
    has_foreign_host,
    is_cross_site,
    is_loopback,
)
from server.auth.sessions import Sessions, in_console, redirect_to_login
from server.errors import error_response
from server.guarded.policy_choice import KEY_POLICY
from server.routes.headers import with_headers
from server.routes.open import REFINE_PREFIX, path_of

_PUBLIC_PATHS = frozenset({"/health", "/metrics", "/ping", "/ready"})
"""Probes and scrapers send no key, and these paths reveal nothing about requests."""

_GUARD_PATHS = re.compile(r"/v1/guard(/.*)?|/console(/.*)?", re.DOTALL)
_PUBLIC_CONSOLE = re.compile(r"/console/(login|static/[^/]+)")
_REVIEWER_ACTIONS = re.compile(r"(/v1/guard|/console)/flags/([^/]+/)?label|/console/logout")
CALLER = "setback.caller"
"""Where a request's scope has the caller's name."""
_LIMIT = "setback.limit"
_ROLE = "setback.role"
_POLICY_VIOLATION = 1008
_POLL_S = 2.0
_LOCAL = "local"
_log = logging.getLogger("vllm.setback")


def role_of(method: str, path: str) -> Role | None:
    """Returns the role a caller of that path needs, or None if it is public. Reviewers may read and
    label; all other changes need the role admin."""
    if path in _PUBLIC_PATHS or path.startswith(REFINE_PREFIX) or _PUBLIC_CONSOLE.fullmatch(path):
        return None
    if not _GUARD_PATHS.fullmatch(path):
        return "call"
    return "review" if method in SAFE_METHODS or _REVIEWER_ACTIONS.fullmatch(path) else "admin"


def is_local(options: Namespace) -> bool:
    """Whether only this machine can reach a server with these vLLM options, or only callers with
    vLLM's own --api-key."""
    return bool(options.uds or options.api_key or is_loopback(options.host or ""))


def caller_of(request: Request) -> str:
    """Returns the caller's name for the audit trail."""
    return str(request.scope.get(CALLER, _LOCAL))


Caller = Annotated[str, Depends(caller_of)]


def role_of_caller(request: Request) -> Role:
    """Returns the caller's role; "admin" when there are no keys."""
    role: Role = request.scope.get(_ROLE, "admin")
    return role


class Access:
    """The keys in force, re-read from the store regularly.

    local: only this machine can reach the server, so it may be open while there are no keys.
    api_key: that holds because of vLLM's --api-key, which covers the paths under /v1 only.
    public_url: the origin that browsers see, if a proxy hides it.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        local: bool,
        api_key: bool = False,
        public_url: str | None = None,
    ) -> None:
        self.public_url = public_url
        self._store = store
        self._local = local
        self._api_key = api_key
        self._keys: Sequence[Key] = ()

    @property
    def has_keys(self) -> bool:
        """Whether any key is in force."""
        return any(key.revoked_at is None for key in self._keys)

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        # Keys stay in the list when revoked: revoking the last one does not open the server.
        return self._local and not self._keys

    @property
    def keyless(self) -> bool:
        """Whether the server is protected only by being reachable from this machine alone."""
        return self.open and not self._api_key

    @property
    def console(self) -> bool:
        """Whether the console may be served."""
        return self.keyless or not self.open

    def key(self, number: int | None) -> Key | None:
        """Returns the key with that number unless it is revoked."""
        keys = (key for key in self._keys if key.id == number and key.revoked_at is None)
        return next(keys, None)

    def find(self, secret: str) -> Key | None:
        """Returns the key with that secret unless it is revoked."""
        return find(self._keys, secret)

    async def refresh(self) -> None:
        """Re-reads the keys. Raises StoreUnavailable."""
        self._keys = await self._store.list()

    async def watch(self) -> None:
        """Refreshes for ever. While that fails, the keys stay as they were."""
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                _log.warning("The keys could not be read again: %s", error)


class AccessMiddleware:
    """Passed to vLLM as --middleware, outermost: the key is checked before the body is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its caller's name, or answers 401, 403 or 429."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        access: Access = scope["app"].state.setback.access
        role = role_of(scope.get("method", "GET"), path_of(scope))
        if in_console(path_of(scope)):
            send = with_headers(send, PAGE_HEADERS)
        refusal = _refuse_cross_site(scope, access)
        if refusal is None and role is not None and not access.open:
            refusal = _refuse_without_key(scope, access, role)
        if refusal is None and _LIMIT in scope:
            refusal, send = await _apply_rate_limit(scope, send)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await refusal(scope, receive, send)


def _refuse_cross_site(scope: Scope, access: Access) -> Response | None:
    """Refuses requests that another site's page made the browser send."""
    path, headers = path_of(scope), Headers(scope=scope)
    console = in_console(path)
    if console and not access.console:
        return _forbidden(
            "The console is not behind --api-key; create keys with `setback keys make` and leave "
            "that option out.",
        )
    # API keys in a header are safe: browsers never add them by themselves. They do add cookies, and
    # they reach this machine.
    is_guard_path = _GUARD_PATHS.fullmatch(path) and not path.startswith(REFINE_PREFIX)
    if not console and not (access.keyless and is_guard_path):
        return None
    if is_cross_site(scope.get("method", "GET"), headers, access.public_url):
        return _forbidden("A page of another site may not send this; open the console itself.")
    if access.keyless and has_foreign_host(headers):
        return _forbidden(
            "Without keys the server can only be called as localhost or 127.0.0.1; create a key "
            "with `setback keys make`.",
        )
    return None


def _refuse_without_key(scope: Scope, access: Access, role: Role) -> Response | None:
    """Refuses callers without a key of the needed role; otherwise sets the caller's name."""
    connection = HTTPConnection(scope)
    key = header_key = access.find(_presented_key(connection.headers))
    console = in_console(path_of(scope))
    if console and key is None:
        sessions: Sessions = scope["app"].state.setback.sessions
        key = access.key(sessions.key_id(connection))
    if key is None and console:
        return redirect_to_login(connection)
    if key is None:
        return error_response(
            401,
            "Incorrect or no API key; send one as `Authorization: Bearer sb-...`. "
            "`setback keys make` creates one.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    if not key.may(role):
        return error_response(
            403,
            f"This key has the role {key.role}; {path_of(scope)} needs {role}.",
            code="insufficient_permissions",
        )
    scope[CALLER] = f"key {key.id} ({key.name})"
    scope[_ROLE] = key.role
    scope[KEY_POLICY] = key.policy
    if header_key is not None and header_key.requests_per_minute is not None:
        scope[_LIMIT] = header_key.id, header_key.requests_per_minute
    return None


async def _apply_rate_limit(scope: Scope, send: Send) -> tuple[Response | None, Send]:
    """Refuses a key over its rate limit. Also returns a `send` that adds the rate-limit headers."""
    limits: Limits = scope["app"].state.setback.limits
    status = await limits.take(*scope[_LIMIT])
    if status is None:
        return None, send
    return status.refusal() if status.exceeded else None, with_headers(send, status.headers)


def _forbidden(message: str) -> Response:
    return error_response(403, message, code="forbidden_origin")


def _presented_key(headers: Headers) -> str:
    """Returns the key that OpenAI's clients send, or Anthropic's."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else headers.get("x-api-key", "")
