"""What tests of several replicas share."""

import time
from collections.abc import Callable

import httpx

_PATIENCE_S = 120


def served_by(client: httpx.Client) -> list[int | None]:
    """The adapter that each replica reports."""
    replicas = client.get("/v1/guard/replicas").raise_for_status().json()["data"]
    return [replica["adapter"] for replica in replicas]


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds. Fails after two minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
