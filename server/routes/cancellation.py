"""Cancels the work of our own routes when the client disconnects. vLLM does so for its routes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

from guard.tasks import spawn

T = TypeVar("T")

_CLIENT_CLOSED_REQUEST = 499
"""As nginx logs it; no client receives it."""


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`. When the client disconnects, cancels it and raises
    HTTPException. The request's body must have been read before."""
    task, disconnect = spawn(work), spawn(_disconnected(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(_CLIENT_CLOSED_REQUEST, "The client disconnected")
    finally:
        task.cancel()
        disconnect.cancel()
        # Wait for its end before releasing what it uses, such as an adapter.
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
