"""The jobs of `setback refine` and `setback align`, which make the next adapter of flags or the
first one of a corpus. Owns how they are put together from the settings and what they say; what they
do is refine/cycle.py's and refine/align.py's, and when, schedule.py's.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar

import httpx

from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.flags import FlagStore
from guard.store.leases import Leases
from guard.store.runs import RunStore, StoredRun
from refine.align import run_alignment
from refine.benchmarks.rows import BenchmarkRow
from refine.cycle import run_cycle
from refine.errors import ServerUnavailable
from refine.ground import ground_for
from refine.run import RunContext, Stores
from refine.schedule import leased, repeat
from server.jobs.critics import known_critics
from server.jobs.lent_model import lent_model
from server.settings import Settings

T = TypeVar("T")

_READY_POLL_S = 1.0
_PARENT_POLL_S = 2.0


def refine(
    settings: Settings,
    every: timedelta | None,
    report: Callable[[str], None],
    parent: int | None = None,
) -> StoredRun | None:
    """One cycle now, and its run; or a cycle every so often, without end.

    parent: the process that this job ends with, such as the server that started it.
    Raises GuardError or RefineError when a single cycle cannot be done.
    """

    async def cycle(context: RunContext) -> StoredRun:
        info = await context.model.info()
        critics = await known_critics(settings, info)
        ground = await ground_for(info, context.model, settings.refine, critics.references)
        return await run_cycle(context, ground)

    async def once() -> StoredRun:
        return await leased_run(settings, report, cycle)

    async def for_ever(pause: timedelta) -> None:
        await _until_ready(settings.refine.server_url, report)
        await repeat(pause, once, report)

    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if every is None:
        return run_stoppable(once())
    run_stoppable(for_ever(every))
    return None


def align(
    settings: Settings, rows: Sequence[BenchmarkRow], report: Callable[[str], None]
) -> StoredRun:
    """Aligns the served base from the seed corpus and `rows`; returns the run.

    Raises GuardError or RefineError when it cannot be done.
    """
    return run_stoppable(leased_run(settings, report, lambda context: run_alignment(context, rows)))


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; SIGTERM cancels it, which frees the lease and ends the trainer."""

    async def stoppable() -> T:
        working = asyncio.current_task()
        assert working is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
        return await work

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, however that came about."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


async def leased_run(
    settings: Settings,
    report: Callable[[str], None],
    work: Callable[[RunContext], Awaitable[T]],
) -> T:
    """What `work` returns, done while no other job works on this database. Raises what it raises,
    and GuardError or RefineError when it cannot begin."""
    url, options = settings.database_url, settings.refine
    async with AsyncExitStack() as stack:
        stores = Stores(FlagStore(url), RunStore(url), AdapterStore(url), CalibrationStore(url))
        leases = Leases(url)
        for store in (*vars(stores).values(), leases):
            stack.push_async_callback(store.close)
        await leases.check()
        await stack.enter_async_context(leased(leases, options.lease_s))
        model = await stack.enter_async_context(lent_model(settings))
        return await work(RunContext(stores, model, options, settings.adapters_dir, report))


async def _until_ready(url: str, report: Callable[[str], None]) -> None:
    """Waits for the server's first critique: the job may have been started together with it."""
    report(f"waiting for {url}")
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            try:
                if (await client.get("/ready")).is_success:
                    return
            except httpx.InvalidURL as error:
                raise ServerUnavailable(f"{url} is no URL: {error}") from error
            except httpx.HTTPError:
                pass
            await asyncio.sleep(_READY_POLL_S)
