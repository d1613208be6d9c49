"""Which of vLLM's routes stay open. Owns the lists; everything not on them is closed, so a
route that a later vLLM adds stays closed until someone has looked at it.
"""

from collections.abc import Collection

from fastapi import FastAPI
from starlette.routing import Mount, Route, WebSocketRoute

GUARDED: frozenset[str] = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
    }
)
"""Routes that generate, all through the guarded engine."""

REFINE: frozenset[str] = frozenset(
    {
        "/v1/guard/refine/adapters/{version}",
        "/v1/guard/refine/answers",
        "/v1/guard/refine/model",
        "/v1/guard/refine/verdicts",
    }
)
"""Routes that generate unguarded, for who shows the refine token only."""

CANNOT_GENERATE: frozenset[str] = frozenset(
    {
        "/detokenize",
        "/docs",
        "/docs/oauth2-redirect",
        "/health",
        "/load",
        "/metrics",
        "/openapi.json",
        "/ping",
        "/ready",
        "/redoc",
        "/tokenize",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/moderations",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/version",
    }
)
"""Routes that return no model text, or only text that a guarded route let out before."""


def close_other_routes(app: FastAPI, named: Collection[str]) -> list[str]:
    """Removes every route on no list nor `named`; returns the paths removed, sorted."""
    kept = GUARDED | REFINE | CANNOT_GENERATE | set(named)
    closed = {_path(route) for route in app.router.routes if _path(route) not in kept}
    app.router.routes[:] = [route for route in app.router.routes if _path(route) in kept]
    return sorted(closed)


def _path(route: object) -> str:
    assert isinstance(route, Route | WebSocketRoute | Mount), f"a route of unknown kind: {route!r}"
    return route.path
