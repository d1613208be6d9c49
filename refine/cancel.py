"""Cancels runs. Owns the request to cancel and the job's watch for it. The request is stored in the
run's row (guard/store/runs.py), so it may come from any machine."""

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
    """Cancels a run. A running job notices within a second or two; otherwise it ends at once.

    Raises RunUnknown, or RunOver when it has ended.
    """
    run = await runs.cancel(number, by=by)
    if await leases.held(LEASE) is not None:
        return run
    if await adapters.get(number) is not None:
        with suppress(AdapterConflict):
            await adapters.set_status(number, "rejected")
    await runs.finish(number, "cancelled", reasons=[f"cancelled by {run.cancelled_by}"])
    return await runs.get(number) or run


async def run_unless_cancelled(runs: RunStore, number: int, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`. Raises RunCancelled when the run is cancelled first."""
    done = asyncio.Event()
    task, watcher = spawn(work), spawn(_wait_for_cancellation(runs, number, done))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        by = await watcher
        assert by is not None
        raise RunCancelled(by)
    finally:
        # Wait for the watcher instead of cancelling it: aiosqlite cannot be cancelled in a query.
        done.set()
        task.cancel()
        await asyncio.wait((task, watcher))


async def _wait_for_cancellation(runs: RunStore, number: int, done: asyncio.Event) -> str | None:
    """Returns who cancelled the run, or None once `done` is set."""
    while not done.is_set():
        run = await runs.get(number)
        if run is not None and run.cancelled_by is not None:
            return run.cancelled_by
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _POLL_S)
    return None
