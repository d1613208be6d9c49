"""Runs cycles one at a time, once or at intervals. Owns the lease that lets only one job run, its
renewal, the pause between cycles and the report of failures. Does not define a cycle (cycle.py).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from guard.errors import GuardError, LeaseHeld, StoreUnavailable
from guard.store.leases import Leases, this_process
from guard.store.runs import StoredRun
from guard.tasks import spawn
from refine.errors import RefineError, RunInterrupted

LEASE = "refine"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(text: str) -> timedelta:
    """Parses "90s", "30m", "6h" or "1d". Raises ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match.group(1)) == 0:
        raise ValueError(f"{text!r} is not a duration; write a number with s, m, h or d: 6h")
    return timedelta(**{_UNITS[match.group(2)]: float(match.group(1))})


@asynccontextmanager
async def leased(leases: Leases, ttl_s: float) -> AsyncIterator[None]:
    """Holds the lease during the block, and cancels the block if the lease is lost.

    Raises LeaseHeld when another job has it, RunInterrupted when it was lost.
    """
    token = await leases.acquire(LEASE, this_process(), ttl_s)
    task = asyncio.current_task()
    assert task is not None
    done, lost = asyncio.Event(), asyncio.Event()

    async def renew() -> None:
        try:
            await _renew_until(done, leases, token, ttl_s)
        except GuardError:
            lost.set()
            if not done.is_set():
                task.cancel()

    renewal = spawn(renew())
    try:
        yield
    except asyncio.CancelledError:
        if lost.is_set():
            raise RunInterrupted("The lease was lost; the next job resumes the run") from None
        raise
    finally:
        # Not cancelled: the event loop's shutdown would cancel it again during its clean-up, and
        # aiosqlite's close() would then hang.
        done.set()
        await renewal
        # Not released, it expires.
        with suppress(StoreUnavailable):
            await leases.release(LEASE, token)


async def _renew_until(done: asyncio.Event, leases: Leases, token: str, ttl_s: float) -> None:
    """Renews the lease until `done`. Raises GuardError when it is lost, or may be: a database that
    fails is tried again until the lease expires."""
    loop = asyncio.get_running_loop()
    expires = loop.time() + ttl_s
    while not await _within(ttl_s / 6, done):
        began = loop.time()
        try:
            await leases.renew(LEASE, token, ttl_s)
        except StoreUnavailable:
            if loop.time() > expires:
                raise
        else:
            expires = began + ttl_s


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Waits for the event. Returns False if it is not set in time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def repeat(
    pause: timedelta, run_once: Callable[[], Awaitable[StoredRun]], report: Callable[[str], None]
) -> None:
    """Runs a cycle now and at intervals, for ever. Failures are reported and retried."""
    while True:
        try:
            await run_once()
        except LeaseHeld as error:
            report(f"another job is running: {error}")
        except (RefineError, GuardError) as error:
            report(f"the cycle failed and is retried in {pause}: {error}")
        await asyncio.sleep(pause.total_seconds())
