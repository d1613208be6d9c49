"""Activates adapters in a family's server, and waits until it answers with them."""

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest

from guard.store.flags import FlagStore
from server.routes.model_access import TOKEN_HEADER
from tests.families.conftest import Served

_WAIT_S = 60


def revision_of(served: Served) -> str:
    """Returns the served base model's revision, from the refine routes."""

    async def token() -> str:
        store = FlagStore(served.server.database)
        shown = await store.refine_token()
        await store.close()
        return shown

    headers = {TOKEN_HEADER: asyncio.run(token())}
    url = f"{served.server.base_url}/v1/guard/refine/model"
    revision: str = httpx.get(url, headers=headers, timeout=60).json()["model_revision"]
    return revision


def wait_for(served: Served, name: str) -> None:
    """Waits until the server answers with the adapter of that name."""
    body = {"model": served.family.name, "input": "So."}

    def answered(http: httpx.Client) -> bool:
        answer = http.post("/v1/moderations", json=body)
        return bool(answer.headers.get("x-setback-adapter") == name)

    _wait(served, answered, f"swap to {name}")


def wait_for_log(served: Served, said: str) -> None:
    """Waits until the server's log contains the text."""

    def logged(http: httpx.Client) -> bool:
        http.get("/health")
        return said in served.server.log.read_text()

    _wait(served, logged, f"log {said!r}")


def _wait(served: Served, happened: Callable[[httpx.Client], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    with served.server.http() as http:
        while time.monotonic() < deadline:
            if happened(http):
                return
    pytest.fail(f"the server did not {what}:\n{served.server.log.read_text()[-4000:]}")
