"""Who may call what: the role of every route, and the check of the key that a caller shows. Owns
both; keys are made and kept in guard/store/keys.py.

Without any key only this machine can reach the server (serve.py sees to that), and everything is
allowed. The refine job's routes have a token of their own: see refine_routes.py.
"""

import asyncio
import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from ipaddress import ip_address

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.errors import StoreUnavailable
from guard.store.keys import Key, KeyStore, Role, find
from server.errors import error_response
from server.routes import REFINE_PREFIX, path_of

_OPEN = frozenset({"/health", "/metrics", "/ping", "/ready"})
"""For probes and scrapers, which show no key; they tell nothing of any request."""

_GUARD_PREFIX = "/v1/guard/"
_ADMIN = re.compile(
    r"/v1/guard/(flags/purge|users/.*|adapters/rollback|adapters/[^/]+/promote)", re.DOTALL
)
_CALLER = "setback.caller"
_NO_SOCKETS = 1008
_POLL_S = 2.0
_LOCAL = "local"
_log = logging.getLogger("vllm.setback")


def role_of(path: str) -> Role | None:
    """What a caller of that path must at least be; None for everybody."""
    if path in _OPEN or path.startswith(REFINE_PREFIX):
        return None
    if _ADMIN.fullmatch(path):
        return "admin"
    return "review" if path.startswith(_GUARD_PREFIX) else "call"


def is_local(options: Namespace) -> bool:
    """Whether a server with vLLM's options is out of others' reach: on this machine alone, or
    behind vLLM's own --api-key."""
    return bool(options.uds or options.api_key or _is_loopback(options.host or ""))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def caller_of(request: Request) -> str:
    """Who is calling, for the audit trail."""
    return str(request.scope.get(_CALLER, _LOCAL))


class Access:
    """The keys in force, as of the last look at the store.

    local: others cannot reach the server, so that it may be open while there is no key.
    """

    def __init__(self, store: KeyStore, *, local: bool) -> None:
        self._store = store
        self._local = local
        self._keys: Sequence[Key] = ()

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        # Revoking the last key closes the server; it does not open it.
        return self._local and not self._keys

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
        """Lets a request through with its caller's name, or answers 401 or 403."""
        role = role_of(path_of(scope)) if scope["type"] in ("http", "websocket") else None
        if role is None:
            await self._app(scope, receive, send)
            return
        access: Access = scope["app"].state.setback.access
        if access.open:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NO_SOCKETS})
            return
        key = access.find(_shown(Headers(scope=scope)))
        if key is None:
            response = error_response(
                401,
                "Incorrect or no API key; send one as `Authorization: Bearer sb-...`. "
                "`setback keys make` makes one.",
                code="invalid_api_key",
            )
            response.headers["www-authenticate"] = "Bearer"
        elif not key.may(role):
            response = error_response(
                403,
                f"This key is for the role {key.role}; {path_of(scope)} needs {role}.",
                code="insufficient_permissions",
            )
        else:
            scope[_CALLER] = f"key {key.id} ({key.name})"
            await self._app(scope, receive, send)
            return
        await response(scope, receive, send)


def _shown(headers: Headers) -> str:
    """The key as OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else headers.get("x-api-key", "")
