"""All processes together enforce the keys' rate limits, and responses report them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI, Request
from prometheus_client import REGISTRY
from sqlalchemy import URL, text
from starlette.datastructures import State
from starlette.responses import Response

from guard.store.database import connect
from guard.store.keys import Key, KeyStore
from guard.store.usage import Usage, UsageStore
from server.auth.access import Access, AccessMiddleware, caller_of
from server.auth.limits import Limits
from server.auth.sessions import Sessions

BASE_URL = "http://127.0.0.1:8000"
PREFIX = "x-ratelimit"


class CountingStore(UsageStore):
    """Counts the database queries."""

    queries = 0

    async def take(self, key: int, limit: int, when: datetime) -> tuple[bool, Usage]:
        self.queries += 1
        return await super().take(key, limit, when)


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Process:
    """An API process with a client."""

    access: Access
    usage: CountingStore
    client: httpx2.AsyncClient
    sessions: Sessions

    async def get(self, secret: str, path: str = "/v1/models") -> httpx2.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {secret}"})

    async def statuses(self, secret: str, times: int) -> list[int]:
        """Sends that many requests at once. Returns the statuses, lowest first."""
        got = await asyncio.gather(*(self.get(secret) for _ in range(times)))
        return sorted(response.status_code for response in got)


async def caller(request: Request) -> str:
    return caller_of(request)


async def start(url: URL, clock: Clock, closing: AsyncExitStack) -> Process:
    """Starts an API process that answers every path."""
    keys, usage, sessions = KeyStore(url), CountingStore(url), Sessions("secret of the sessions")
    access = Access(keys, local=False)
    app = FastAPI()
    parts = {"access": access, "limits": Limits(usage, clock), "sessions": sessions}
    app.state = State({"setback": SimpleNamespace(**parts)})
    app.add_api_route("/{path:path}", caller)
    app.add_middleware(AccessMiddleware)
    transport: Any = httpx2.ASGITransport(app)
    client = httpx2.AsyncClient(transport=transport, base_url=BASE_URL)
    await closing.enter_async_context(client)
    for store in (keys, usage):
        closing.push_async_callback(store.close)
    return Process(access, usage, client, sessions)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def processes(database: URL, clock: Clock) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes on one database."""
    async with AsyncExitStack() as closing:
        yield await start(database, clock, closing), await start(database, clock, closing)


@pytest.fixture
def process(processes: tuple[Process, Process]) -> Process:
    return processes[0]


async def make(database: URL, processes: tuple[Process, ...], limit: int | None) -> tuple[Key, str]:
    """Makes a key with that limit, known to the processes, and returns it with its secret."""
    keys = KeyStore(database)
    created = await keys.make("ci", "review", by="ada", requests_per_minute=limit)
    await keys.close()
    for process in processes:
        await process.access.refresh()
    return created


def limit_headers(response: httpx2.Response) -> tuple[str, ...]:
    names = ("limit", "remaining", "reset")
    return tuple(response.headers[f"{PREFIX}-{name}-requests"] for name in names)


def refused() -> float:
    return REGISTRY.get_sample_value("setback_rate_limited_total") or 0.0


async def test_two_processes_hold_one_limit(
    database: URL, processes: tuple[Process, Process]
) -> None:
    _, secret = await make(database, processes, 5)
    both = await asyncio.gather(*(worker.statuses(secret, 6) for worker in processes))
    assert sorted(both[0] + both[1]) == [200] * 5 + [429] * 7


async def test_the_window_slides(
    database: URL, processes: tuple[Process, Process], clock: Clock
) -> None:
    first, second = processes
    _, secret = await make(database, processes, 4)
    clock.pass_s(59)
    assert await first.statuses(secret, 5) == [200] * 4 + [429]
    # A quarter of the next minute makes room for one of four.
    clock.pass_s(15)
    assert [await worker.statuses(secret, 1) for worker in processes] == [[429], [429]]
    clock.pass_s(1)
    assert [await worker.statuses(secret, 1) for worker in processes] == [[200], [429]]
    clock.pass_s(15)
    assert await second.statuses(secret, 2) == [200, 429]
    clock.pass_s(120)
    assert await first.statuses(secret, 5) == [200] * 4 + [429]


async def test_a_refusal_says_how_long_to_wait(
    database: URL, processes: tuple[Process, Process], clock: Clock
) -> None:
    _, secret = await make(database, processes, 3)
    before = refused()
    clock.pass_s(10.5)
    for _ in range(3):
        await processes[0].get(secret)
    response = await processes[1].get(secret)
    assert response.status_code == 429
    assert response.json()["error"] == {
        "message": "This key is limited to 3 requests a minute; try again in 70 s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert response.headers["retry-after"] == "70"
    assert limit_headers(response) == ("3", "0", "110s")
    assert refused() == before + 1
    clock.pass_s(69)
    assert (await processes[1].get(secret)).headers["retry-after"] == "1"
    clock.pass_s(1)
    assert (await processes[1].get(secret)).status_code == 200


async def test_every_response_tells_what_is_left(
    database: URL, processes: tuple[Process, Process], clock: Clock
) -> None:
    _, secret = await make(database, processes, 10)
    assert [limit_headers(await worker.get(secret)) for worker in processes] == [
        ("10", "9", "120s"),
        ("10", "8", "120s"),
    ]
    clock.pass_s(90)
    # Half of the two requests still counts in the window.
    assert limit_headers(await processes[0].get(secret)) == ("10", "8", "90s")
    assert "retry-after" not in (await processes[0].get(secret)).headers


async def test_refused_requests_do_not_reach_the_database(
    database: URL, process: Process, clock: Clock
) -> None:
    _, secret = await make(database, (process,), 1)
    assert await process.statuses(secret, 1) == [200]
    assert await process.statuses(secret, 1) == [429]
    queries = process.usage.queries
    assert await process.statuses(secret, 30) == [429] * 30
    assert process.usage.queries == queries
    clock.pass_s(120)
    assert await process.statuses(secret, 1) == [200]


async def test_refused_requests_do_not_use_up_the_limit(
    database: URL, processes: tuple[Process, Process], clock: Clock
) -> None:
    _, secret = await make(database, processes, 6)
    answered = 0
    for _ in range(5 * 60):
        for worker in processes:
            answered += (await worker.get(secret)).status_code == 200
        clock.pass_s(1)
    assert 5 * 6 - 6 <= answered <= 5 * 6 + 1


async def test_keys_without_a_limit_touch_no_database(database: URL, process: Process) -> None:
    _, secret = await make(database, (process,), None)
    response = await process.get(secret)
    assert response.status_code == 200
    assert process.usage.queries == 0
    assert not any(name.startswith(PREFIX) for name in response.headers)


async def test_requests_refused_by_role_or_without_keys_are_not_counted(
    database: URL, process: Process
) -> None:
    _, secret = await make(database, (process,), 1)
    headers = {"authorization": f"Bearer {secret}"}
    deleted = await process.client.delete("/v1/guard/users/ab", headers=headers)
    assert deleted.status_code == 403
    assert (await process.get(secret, "/health")).status_code == 200
    assert (await process.client.get("/v1/models")).status_code == 401
    assert process.usage.queries == 0


async def test_console_sessions_are_not_rate_limited(database: URL, process: Process) -> None:
    key, secret = await make(database, (process,), 1)
    login = Request({"type": "http", "scheme": "http", "path": "/", "headers": []})
    process.sessions.begin(login, response := Response(), key)
    cookie = {"cookie": response.headers["set-cookie"].partition(";")[0]}
    for _ in range(3):
        page = await process.client.get("/console/flags", headers=cookie)
        assert page.json() == f"key {key.id} (ci)"
    assert process.usage.queries == 0
    assert [(await process.get(secret, "/console/flags")).status_code for _ in "12"] == [200, 429]


async def test_while_the_database_fails_requests_pass(
    database: URL, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    key, secret = await make(database, (process,), 1)
    engine = connect(database)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE key_usage RENAME TO gone"))
    with caplog.at_level(logging.WARNING, "vllm.setback"):
        responses = [await process.get(secret) for _ in range(3)]
    assert [response.status_code for response in responses] == [200] * 3
    assert f"The requests of key {key.id} are not limited" in caplog.text
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE gone RENAME TO key_usage"))
    await engine.dispose()
    assert await process.statuses(secret, 2) == [200, 429]


async def test_nobody_waits_long_for_the_database(
    database: URL,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("server.auth.limits._STORE_TIMEOUT_S", 0.1)
    _, secret = await make(database, (process,), 9)
    caplog.set_level(logging.WARNING, "vllm.setback")
    engine = connect(database)
    assert await process.statuses(secret, 1) == [200]
    async with engine.begin() as rival:
        await rival.execute(text("UPDATE key_usage SET requests = 1"))
        response = await process.get(secret)
        late = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*late)
    await engine.dispose()
    assert response.status_code == 200
    assert f"{PREFIX}-limit-requests" not in response.headers
    assert "takes too long" in caplog.text
    # The request was still counted, only later.
    assert limit_headers(await process.get(secret))[1] == "6"


async def test_openais_client_understands_a_refusal(database: URL, process: Process) -> None:
    _, secret = await make(database, (process,), 1)
    await process.get(secret)
    client = openai.AsyncOpenAI(
        base_url=f"{BASE_URL}/v1", api_key=secret, http_client=process.client, max_retries=0
    )
    with pytest.raises(openai.RateLimitError, match="1 requests a minute") as raised:
        await client.models.list()
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers["retry-after"] == "120"
