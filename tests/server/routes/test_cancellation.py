"""Work is cancelled when its client disconnects, and otherwise returns its result."""

import asyncio

import pytest
from fastapi import FastAPI, Request
from starlette.types import Message

from server.routes.cancellation import cancel_on_disconnect

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/work",
    "raw_path": b"/work",
    "query_string": b"",
    "headers": [],
    "http_version": "1.1",
}


class Caller:
    """Sends a request, and disconnects when told to. statuses: of the responses it received."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.statuses: list[int] = []
        self._body = [{"type": "http.request", "body": b"asked", "more_body": False}]

    async def receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if "status" in message:
            self.statuses.append(message["status"])


class Work:
    """An application with one route, which works until it may end."""

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.ended = ""
        self.app = FastAPI()
        self.app.post("/work")(self.route)

    async def route(self, request: Request) -> str:
        body = await request.body()
        return await cancel_on_disconnect(request, self.work(body.decode()))

    async def work(self, body: str) -> str:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.ended = "given up"
            raise
        self.ended = body
        if body == "fail":
            raise ValueError(body)
        return body


async def test_work_is_cancelled_when_its_client_disconnects() -> None:
    caller, work = Caller(), Work()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work.app(SCOPE, caller.receive, caller.send))
        await work.begun.wait()
        caller.leaves.set()
    assert work.ended == "given up"
    assert caller.statuses == [499]


async def test_a_waiting_client_gets_the_result() -> None:
    caller, work = Caller(), Work()
    work.may_end.set()
    await work.app(SCOPE, caller.receive, caller.send)
    assert work.ended == "asked"
    assert caller.statuses == [200]


async def test_a_failure_is_the_works_own() -> None:
    work = Work()
    work.may_end.set()
    with pytest.raises(ValueError, match="fail"):
        await cancel_on_disconnect(Request(dict(SCOPE), Caller().receive), work.work("fail"))
