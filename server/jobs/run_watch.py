"""Updates the metric of the refine loop's last runs from the database. Owns the schedule. Does not
define the metric (telemetry/metrics.py).
"""

import asyncio
import logging

from guard.errors import StoreUnavailable
from guard.store.runs import RunStore
from server.telemetry.metrics import set_run_metrics

_EVERY_S = 30.0
_NEWEST_RUNS = 50
_log = logging.getLogger("vllm.setback")


async def watch_runs(runs: RunStore, every_s: float = _EVERY_S) -> None:
    """Reads the newest runs now and at intervals, for ever."""
    while True:
        try:
            set_run_metrics(await runs.list(_NEWEST_RUNS))
        except StoreUnavailable as error:
            _log.warning("The refine loop's runs could not be read: %s", error)
        await asyncio.sleep(every_s)
