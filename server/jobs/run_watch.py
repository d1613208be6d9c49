"""Keeps the metric of the refine loop's last runs, which its job leaves in the database. Owns the
clock; what is told is telemetry/metrics.py's.
"""

import asyncio
import logging

from guard.errors import StoreUnavailable
from guard.store.runs import RunStore
from server.telemetry.metrics import tell_runs

_EVERY_S = 30.0
_LOOKED_AT = 50
_log = logging.getLogger("vllm.setback")


async def watch_runs(runs: RunStore, every_s: float = _EVERY_S) -> None:
    """Looks at the newest runs, now and again and again, for ever."""
    while True:
        try:
            tell_runs(await runs.list(_LOOKED_AT))
        except StoreUnavailable as error:
            _log.warning("The refine loop's runs could not be read: %s", error)
        await asyncio.sleep(every_s)
