"""Errors of the Messages API have Anthropic's shape, whoever raised them; nothing else changes."""

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.errors import error_response
from server.guarded.anthropic_errors import AnthropicErrorMiddleware


def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.add_middleware(AnthropicErrorMiddleware)

    @app.post("/v1/messages")
    @app.post("/v1/messages/count_tokens")
    @app.post("/v1/chat/completions")
    async def fails(status: int) -> Response:
        return error_response(status, "It is wrong.", code="wrong", param="max_tokens")

    @app.get("/v1/messages/other")
    async def other(kind: str) -> Response:
        if kind == "text":
            return Response("no JSON", status_code=502)
        if kind == "own":
            body = {"type": "error", "error": {"type": "x", "message": "m"}}
            return JSONResponse(body, status_code=400)
        return StreamingResponse(iter([b"a", b"b"]))

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "api_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_an_error_has_anthropics_shape(path: str, status: int, kind: str) -> None:
    async with client() as caller:
        response = await caller.post(path, params={"status": status})
    assert response.status_code == status
    body = response.json()
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["message"]) == (kind, "It is wrong.")
    assert response.headers["content-length"] == str(len(response.content))


async def test_other_apis_keep_openais_shape() -> None:
    async with client() as caller:
        response = await caller.post("/v1/chat/completions", params={"status": 400})
    assert "type" not in response.json()


async def test_what_is_no_such_error_stays_as_it_is() -> None:
    async with client() as caller:
        text = await caller.get("/v1/messages/other", params={"kind": "text"})
        stream = await caller.get("/v1/messages/other", params={"kind": "stream"})
    assert (text.status_code, text.text) == (502, "no JSON")
    assert (stream.status_code, stream.text) == (200, "ab")
