"""Ends a run that somebody wants ended. Owns the asking and the job's watch for it; who asks is
written in the run's row by guard/store/runs.py, from whichever machine."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from guard.errors import AdapterConflict
from guard.store.adapters import AdapterStore
from guard.store.leases import Leases
from guard.store.runs import RunStore, StoredRun
from guard.tasks import spawn
from refine.errors import RunCancelled
from refine.schedule import LEASE

T = TypeVar("T")

_POLL_S = 1.0


async def cancel_run(
    number: int, by: str, *, runs: RunStore, adapters: AdapterStore, leases: Leases
) -> StoredRun:
    """Ends a run: its job does so within a second or two; what no job works on ends at once.

    Raises RunUnknown, or RunOver when it ended before.
    """
    run = await runs.cancel(number, by=by)
    if await leases.held(LEASE) is not None:
        return run
    if await adapters.get(number) is not None:
        with suppress(AdapterConflict):
            await adapters.set_status(number, "rejected")
    await runs.finish(number, "cancelled", reasons=[f"cancelled by {run.cancelled_by}"])
    return await runs.get(number) or run


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
