"""Ends a run that somebody wants ended. Owns the watch for that; who asks is written in the run's
row by guard/store/runs.py, from whichever machine."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from guard.store.runs import RunStore
from guard.tasks import spawn
from refine.errors import RunCancelled

T = TypeVar("T")

_POLL_S = 1.0


async def unless_cancelled(runs: RunStore, number: int, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises RunCancelled as soon as it is ended instead."""
    over = asyncio.Event()
    working, watching = spawn(work), spawn(_wanted_by(runs, number, over))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        by = await watching
        assert by is not None
        raise RunCancelled(by)
    finally:
        # The watch is not cancelled but let finish: amid a query, aiosqlite would not survive it.
        over.set()
        working.cancel()
        await asyncio.wait((working, watching))


async def _wanted_by(runs: RunStore, number: int, over: asyncio.Event) -> str | None:
    """Waits until somebody wants the run to end, and tells who; None when it is over before."""
    while not over.is_set():
        run = await runs.get(number)
        if run is not None and run.cancelled_by is not None:
            return run.cancelled_by
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _POLL_S)
    return None
