"""Request bodies: what is encoded is decoded, and what is too large is refused before it is read
whole."""

import gzip
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request

from server.routes.body import BodyMiddleware

LIMIT_MIB = 0.01
TEXT = b'{"text": "' + b"a" * 5000 + b'"}'


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """An application that says what it read, with a limit of 10,485 bytes."""
    monkeypatch.setenv("SETBACK_MAX_BODY_MIB", str(LIMIT_MIB))
    app = FastAPI()
    app.add_middleware(BodyMiddleware)

    @app.post("/")
    async def read(request: Request) -> list[object]:
        length = request.headers.get("content-length")
        return [(await request.body()).decode(), length, "content-encoding" in request.headers]

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("GZIP", gzip.compress(TEXT, mtime=0)),
        ("deflate", zlib.compress(TEXT)),
    ],
)
async def test_a_body_is_read_in_each_encoding(
    client: httpx.AsyncClient, encoding: str | None, body: bytes
) -> None:
    headers = {"content-encoding": encoding} if encoding else {}
    read = (await client.post("/", content=body, headers=headers)).json()
    assert read[0] == TEXT.decode()
    assert read[1] == str(len(TEXT))


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code", "message"),
    [
        ("br", TEXT, 415, "unsupported_encoding", "'br'"),
        ("gzip", TEXT, 400, "invalid_body", "not gzip"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-20], 400, "invalid_body", "not gzip"),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"more", 400, "invalid_body", "not gzip"),
        ("identity", b"a" * 10_486, 413, "request_too_large", "SETBACK_MAX_BODY_MIB"),
        ("gzip", gzip.compress(b"a" * 9_000_000), 413, "request_too_large", "0.01 MiB"),
    ],
)
async def test_other_bodies_are_refused_by_name(
    client: httpx.AsyncClient, encoding: str, body: bytes, status: int, code: str, message: str
) -> None:
    response = await client.post("/", content=body, headers={"content-encoding": encoding})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert message in error["message"]


async def test_a_body_in_chunks_is_refused_at_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1000
            yield b"a" * 1000

    assert (await client.post("/", content=chunks())).status_code == 413
    assert sent < 20_000
