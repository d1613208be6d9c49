"""Counts this process's answers for the console's charts. Owns the counts until they are in the
database, minute by minute; Prometheus has them all by itself (metrics.py).
"""

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime

from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store.traffic import Traffic, TrafficStore
from server.telemetry.metrics import PrometheusObserver

_EVERY_S = 10.0
_log = logging.getLogger("vllm.setback")


class TallyingObserver(PrometheusObserver):
    """Counts the guard's events, also for the charts."""

    def __init__(self, store: TrafficStore) -> None:
        self._store = store
        self._counted = Traffic()

    def action(self, action: Action, adapter: str) -> None:
        """See Observer."""
        super().action(action, adapter)
        self._counted = replace(self._counted, answers=self._counted.answers + 1)

    def flag_written(self, seconds: float) -> None:
        """See Observer."""
        super().flag_written(seconds)
        self._counted = replace(self._counted, flagged=self._counted.flagged + 1)

    def overhead(self, seconds: float) -> None:
        """See Observer."""
        super().overhead(seconds)
        so_far = self._counted
        self._counted = replace(
            so_far, requests=so_far.requests + 1, overhead_s=so_far.overhead_s + seconds
        )

    async def keep(self, every_s: float = _EVERY_S) -> None:
        """Puts the counts into the database every so often, for ever; what fails is put later."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.put()
            except StoreUnavailable as error:
                _log.warning("The traffic could not be kept and will be later: %s", error)

    async def put(self) -> None:
        """Puts what was counted since the last time. Raises StoreUnavailable, and loses nothing."""
        counted = self._counted
        if counted == Traffic():
            return
        await self._store.add(datetime.now(UTC), counted)
        self._counted = _less(self._counted, counted)


def _less(all_of_it: Traffic, part: Traffic) -> Traffic:
    return Traffic(
        all_of_it.answers - part.answers,
        all_of_it.flagged - part.flagged,
        all_of_it.requests - part.requests,
        all_of_it.overhead_s - part.overhead_s,
    )
