"""Reports what this API process serves, so that all that share a database can be seen at once. Owns
the schedule and how long a silent process counts as serving. Does not store reports
(guard/store/replicas.py).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from guard.errors import StoreUnavailable
from guard.store.replicas import Replica, ReplicaStore

_EVERY_S = 10.0
_SILENT = timedelta(seconds=60)
_log = logging.getLogger("vllm.setback")


async def report_regularly(
    store: ReplicaStore, served: Callable[[], Replica], every_s: float = _EVERY_S
) -> None:
    """Stores what `served` returns now and at intervals, for ever."""
    while True:
        try:
            await store.report(served())
        except StoreUnavailable as error:
            _log.warning("What this process serves could not be reported: %s", error)
        await asyncio.sleep(every_s)


async def serving(store: ReplicaStore) -> Sequence[Replica]:
    """Returns the processes that have reported in the last minute. Raises StoreUnavailable."""
    return await store.since(datetime.now(UTC) - _SILENT)
