"""Pages of other sites that call the server (CORS). Owns that preflights are answered before keys
are checked, and that errors of ours have the headers too. Which origins are allowed is vLLM's
--allowed-origins.
"""

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class OuterCorsMiddleware:
    """Passed to vLLM as --middleware, around the check of keys. vLLM's own is inside of it, where
    no preflight would get to, because browsers send them without a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._cors: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers preflights, and passes all other requests on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._cors is None:
            self._cors = _as_configured(scope["app"], self._app)
        await self._cors(scope, receive, send)


def _as_configured(app: FastAPI, inner: ASGIApp) -> ASGIApp:
    """Wraps `inner` with the options of vLLM's own middleware, if it has one."""
    for middleware in app.user_middleware:
        factory: object = middleware.cls
        if factory is CORSMiddleware:
            options: Any = middleware.kwargs
            return CORSMiddleware(inner, **options)
    return inner
