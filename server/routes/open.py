"""Which routes stay open. Owns the lists. Every route not on them is closed, so that a route which
a later vLLM adds stays closed until someone has reviewed it.
"""

from collections.abc import Collection

from fastapi import FastAPI
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Scope

GUARDED: frozenset[str] = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
    }
)
"""Routes that generate text, all through the guarded engine."""

REFINE_PREFIX = "/v1/guard/refine/"
REFINE: frozenset[str] = frozenset(
    REFINE_PREFIX + name
    for name in ("adapters/{version}", "answers", "lengths", "model", "verdicts")
)
"""Routes that generate text unguarded, only for callers with the refine token."""

REVIEW: frozenset[str] = frozenset(
    {
        "/v1/guard/flags",
        "/v1/guard/flags/export",
        "/v1/guard/flags/label",
        "/v1/guard/flags/purge",
        "/v1/guard/flags/{flag_id}",
        "/v1/guard/flags/{flag_id}/label",
        "/v1/guard/users/{user_hash}",
        "/v1/guard/adapters",
        "/v1/guard/adapters/rollback",
        "/v1/guard/adapters/{version}",
        "/v1/guard/adapters/{version}/promote",
        "/v1/guard/policies",
        "/v1/guard/policy",
        "/v1/guard/replicas",
        "/v1/guard/rollouts",
        "/v1/guard/rollouts/stop",
        "/v1/guard/runs",
        "/v1/guard/runs/{run_id}",
        "/v1/guard/runs/{run_id}/cancel",
        "/v1/guard/runs/{run_id}/events",
    }
)
"""Routes for reviewers and operators, by their key's role: see auth/access.py."""

CONSOLE: frozenset[str] = frozenset(
    {
        "/console",
        "/console/adapters",
        "/console/adapters/rollback",
        "/console/adapters/{version}",
        "/console/adapters/{version}/promote",
        "/console/flags",
        "/console/flags/{flag_id}",
        "/console/flags/{flag_id}/analysis",
        "/console/flags/{flag_id}/label",
        "/console/login",
        "/console/logout",
        "/console/policy",
        "/console/policy/try",
        "/console/rollouts/stop",
        "/console/runs",
        "/console/runs/{run_id}",
        "/console/runs/{run_id}/cancel",
        "/console/static/{name}",
        "/console/traffic",
    }
)
"""The same for browsers. A flag's analysis, which the model writes, is judged before it is
shown."""

CANNOT_GENERATE: frozenset[str] = frozenset(
    {
        "/beta/litellm_basic_guardrail_api",
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
        "/v1/models/{model:path}",
        "/v1/moderations",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/version",
    }
)
"""Routes that return no generated text, or only text that a guarded route released before."""


def close_other_routes(app: FastAPI, named: Collection[str]) -> list[str]:
    """Removes every route that is on no list and not `named`. Returns their paths, sorted."""
    allowed = GUARDED | REFINE | REVIEW | CONSOLE | CANNOT_GENERATE | set(named)
    closed = {_path(route) for route in app.router.routes if _path(route) not in allowed}
    app.router.routes[:] = [route for route in app.router.routes if _path(route) in allowed]
    return sorted(closed)


def path_of(scope: Scope) -> str:
    """Returns the path of the request without the mount prefix."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    # As in Starlette: /v1 is not below a mount at /v.
    return below if below.startswith("/") else path


def _path(route: object) -> str:
    assert isinstance(route, Route | WebSocketRoute | Mount), f"a route of unknown kind: {route!r}"
    return route.path
