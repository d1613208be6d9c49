"""Pages of other sites: a preflight needs no key, and our own errors have the headers."""

import httpx
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import error_response
from server.routes.cors import OuterCorsMiddleware

ORIGIN = "https://app.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}


class RefusesEverything:
    """The check of keys, for a caller without one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(401, "No key.", code="invalid_api_key")(scope, receive, send)


def client(*, cors: bool, origins: list[str]) -> httpx.AsyncClient:
    app = FastAPI()
    if cors:
        options = {"allow_origins": origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, **options)  # type: ignore[arg-type]
    app.add_middleware(RefusesEverything)
    app.add_middleware(OuterCorsMiddleware)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def test_a_preflight_is_answered_without_a_key() -> None:
    async with client(cors=True, origins=[ORIGIN]) as page:
        answer = await page.options("/v1/chat/completions", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in answer.headers["access-control-allow-headers"]


async def test_errors_of_ours_have_the_headers() -> None:
    async with client(cors=True, origins=[ORIGIN]) as page:
        answer = await page.post("/v1/chat/completions", headers={"origin": ORIGIN})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == ORIGIN


async def test_other_origins_get_none() -> None:
    async with client(cors=True, origins=[ORIGIN]) as page:
        headers = PREFLIGHT | {"origin": "https://elsewhere.example"}
        answer = await page.options("/v1/chat/completions", headers=headers)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


async def test_without_vllms_middleware_nothing_changes() -> None:
    async with client(cors=False, origins=[]) as page:
        assert (await page.options("/v1/models", headers=PREFLIGHT)).status_code == 401
