"""Runs cycles one at a time, now or again and again. Owns the lease that lets one job work, its
renewal, the pause between cycles and what is said of failures. What a cycle does is cycle.py's.
"""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from guard.errors import GuardError, LeaseHeld
from guard.store.leases import Leases
from guard.store.runs import StoredRun
from guard.tasks import spawn
from refine.errors import RefineError, RunInterrupted

LEASE = "refine"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(text: str) -> timedelta:
    """ "90s", "30m", "6h" or "1d". Raises ValueError that says so."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match.group(1)) == 0:
        raise ValueError(f"{text!r} is no duration; write a number with s, m, h or d, such as 6h")
    return timedelta(**{_UNITS[match.group(2)]: float(match.group(1))})


@asynccontextmanager
async def leased(leases: Leases, ttl_s: float) -> AsyncIterator[None]:
    """Holds the lease inside the block; a block that outlives it is cancelled.

    Raises LeaseHeld when another job has it, RunInterrupted when it was lost on the way.
    """
    token = await leases.acquire(LEASE, f"{socket.gethostname()} pid {os.getpid()}", ttl_s)
    working = asyncio.current_task()
    assert working is not None
    over, lost = asyncio.Event(), asyncio.Event()

    async def renew() -> None:
        try:
            while not await _within(ttl_s / 3, over):
                await leases.renew(LEASE, token, ttl_s)
        except GuardError:
            lost.set()
            if not over.is_set():
                working.cancel()

    renewal = spawn(renew())
    try:
        yield
    except asyncio.CancelledError:
        if lost.is_set():
            raise RunInterrupted("The lease was lost; the next job goes on with the run") from None
        raise
    finally:
        # Not cancelled: the event loop's own end would cancel it once more, amid its clean-up, and
        # aiosqlite's close() then waits for ever.
        over.set()
        await renewal
        await leases.release(LEASE, token)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Waits for the event; False when it did not come in time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def repeat(
    every: timedelta, once: Callable[[], Awaitable[StoredRun]], report: Callable[[str], None]
) -> None:
    """Runs `once` now and then every so often, for ever; a failure is told and tried again."""
    while True:
        try:
            await once()
        except LeaseHeld as held:
            report(f"another job is at work: {held}")
        except (RefineError, GuardError) as error:
            report(f"the cycle failed and is tried again in {every}: {error}")
        await asyncio.sleep(every.total_seconds())
