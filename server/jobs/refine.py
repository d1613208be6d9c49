"""The jobs of `setback refine` and `setback align`, which train the next adapter from flags or the
first one from a corpus. Owns how they are assembled from the settings. Does not define the cycle
(refine/cycle.py), the alignment (refine/align.py) or the schedule (refine/schedule.py).
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
from refine.criteria import criteria_in_force
from refine.cycle import run_cycle
from refine.errors import ServerUnavailable
from refine.evaluation_data import load_evaluation_data
from refine.run import RunContext, Stores
from refine.schedule import leased, repeat
from server.jobs.critics import known_critics
from server.jobs.model_access import served_model
from server.launch.policies_in_force import policies_in_force
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
    """Runs one cycle and returns its run, or runs cycles at intervals for ever.

    parent: a process whose end ends this job, such as the server that started it.
    Raises GuardError or RefineError when a single cycle cannot be run.
    """

    async def cycle(context: RunContext) -> StoredRun:
        info = await context.model.info()
        critics = await known_critics(settings, info)
        evaluation_data = await load_evaluation_data(
            info, context.model, settings.refine, critics.references
        )
        return await run_cycle(context, evaluation_data)

    async def once() -> StoredRun:
        return await leased_run(settings, report, cycle)

    async def for_ever(pause: timedelta) -> None:
        await _until_ready(settings.refine.server_url, report)
        await repeat(pause, once, report)

    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    if every is None:
        return run_until_signal(once())
    run_until_signal(for_ever(every))
    return None


def align(
    settings: Settings, rows: Sequence[BenchmarkRow], report: Callable[[str], None]
) -> StoredRun:
    """Aligns the served base model with the seed corpus and `rows`. Returns the run.

    Raises GuardError or RefineError when it cannot be run.
    """
    return run_until_signal(
        leased_run(settings, report, lambda context: run_alignment(context, rows))
    )


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; SIGTERM cancels it, which frees the lease and ends the trainer."""

    async def stoppable() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent has ended, for whatever reason."""
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
        model = await stack.enter_async_context(served_model(settings))
        text, policies = await policies_in_force(settings.policy_file, url)
        criteria = criteria_in_force(policies, text)
        context = RunContext(stores, model, options, settings.adapter_folder, report, criteria)
        return await work(context)


async def _until_ready(url: str, report: Callable[[str], None]) -> None:
    """Waits until the server is ready: the job may have started at the same time."""
    report(f"waiting for {url}")
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            try:
                if (await client.get("/ready")).is_success:
                    return
            except httpx.InvalidURL as error:
                raise ServerUnavailable(f"{url} is not a URL: {error}") from error
            except httpx.HTTPError:
                pass
            await asyncio.sleep(_READY_POLL_S)
