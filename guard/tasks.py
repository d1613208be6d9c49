"""Background tasks that are not lost: keeps the reference that asyncio itself does not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from guard.errors import GuardError

T = TypeVar("T")

_log = logging.getLogger("vllm.setback")

_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Runs `work` beside the caller; it lives until it is done or cancelled."""
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def keep_refreshing(
    refresh: Callable[[], Awaitable[None]], pause_s: float, what: str
) -> NoReturn:
    """Refreshes after every pause until cancelled; failures are logged and tried again.

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
