"""Activates adapters in a family's server, and waits until it answers with them."""

import time
from collections.abc import Callable

import httpx
import pytest

from tests.families.conftest import Served

_WAIT_S = 60


def wait_for(served: Served, name: str) -> None:
    """Waits until the server answers with the adapter of that name."""
    body = {"model": served.family.name, "input": "So."}

    def answered(http: httpx.Client) -> bool:
        answer = http.post("/v1/moderations", json=body)
        return bool(answer.headers.get("x-setback-adapter") == name)

    _wait(served, answered, f"swap to {name}")


def wait_for_log(served: Served, text: str) -> None:
    """Waits until the server's log contains the text."""

    def logged(http: httpx.Client) -> bool:
        http.get("/health")
        return text in served.server.log.read_text()

    _wait(served, logged, f"log {text!r}")


def _wait(served: Served, happened: Callable[[httpx.Client], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    with served.server.http() as http:
        while time.monotonic() < deadline:
            if happened(http):
                return
            time.sleep(0.05)
    pytest.fail(f"the server did not {what}:\n{served.server.log.read_text()[-4000:]}")
