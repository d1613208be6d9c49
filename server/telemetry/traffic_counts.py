"""Counts this process's answers for the console's charts. Owns the counts until they are written to
the database. The Prometheus metrics are separate (metrics.py).
"""

import asyncio
import logging
from datetime import UTC, datetime

from guard.criteria import Place
from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store.traffic import Traffic, TrafficStore
from server.telemetry.metrics import PrometheusObserver

_EVERY_S = 10.0
_log = logging.getLogger("vllm.setback")


class CountingObserver(PrometheusObserver):
    """Counts the guard's events as metrics and for the charts."""

    def __init__(self, store: TrafficStore) -> None:
        self._store = store
        self._counts = Traffic()

    def action(self, action: Action, *, adapter: str, policy: str) -> None:
        """See Observer."""
        super().action(action, adapter=adapter, policy=policy)
        self._counts += Traffic(answers=1)

    def flag_written(self, place: Place, seconds: float) -> None:
        """See Observer."""
        super().flag_written(place, seconds)
        if place is Place.OUTPUT:
            self._counts += Traffic(flagged=1)

    def overhead(self, seconds: float) -> None:
        """See Observer."""
        super().overhead(seconds)
        self._counts += Traffic(requests=1, overhead_s=seconds)

    async def flush_regularly(self, every_s: float = _EVERY_S) -> None:
        """Writes the counts at intervals, for ever. Keeps them when that fails."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.flush()
            except StoreUnavailable as error:
                _log.warning("The traffic could not be stored; trying again later: %s", error)

    async def flush(self) -> None:
        """Writes the counts since the last call. Raises StoreUnavailable and then keeps them."""
        counts = self._counts
        if counts == Traffic():
            return
        await self._store.add(datetime.now(UTC), counts)
        self._counts -= counts
