"""Gives up work that nobody waits for any more, on our own routes; vLLM sees to its own."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

from guard.tasks import spawn

T = TypeVar("T")

_CLIENT_CLOSED_REQUEST = 499
"""As nginx logs it; nobody is left to read it."""


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to; cancels it and raises HTTPException once the caller has hung up. The
    request's body must have been read."""
    working, leaving = spawn(work), spawn(_hung_up(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HTTPException(_CLIENT_CLOSED_REQUEST, "The caller hung up")
    finally:
        working.cancel()
        leaving.cancel()
        # What the work uses, such as an adapter, is let go only once it has ended.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
