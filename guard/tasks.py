"""Background tasks. Owns the references to them, since asyncio keeps only weak ones."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from guard.errors import GuardError

T = TypeVar("T")

_log = logging.getLogger("vllm.setback")

_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Runs `work` in the background until it is done or cancelled."""
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def keep_refreshing(
    refresh: Callable[[], Awaitable[None]], pause_s: float, what: str
) -> NoReturn:
    """Calls `refresh` after every pause until cancelled. Logs failures and retries.

    what: completes "Cannot see ..." in the log, such as "which adapter is active".
    """
    while True:
        await asyncio.sleep(pause_s)
        try:
            await refresh()
        except GuardError as error:
            _log.warning("Cannot see %s: %s: %s", what, error.code, error)
        except Exception:
            _log.exception("Cannot see %s", what)
