"""Ends staged rollouts: completes or reverts them by their figures, or after their time. Owns the
schedule, and that one process of all decides. Does not know the statistics (rollout_decision.py) or
which requests are counted (guard/).
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from guard.errors import GuardError, LeaseHeld
from guard.store.adapters import AdapterStore
from guard.store.leases import Leases, this_process
from guard.store.rollouts import RolloutStore, StoredRollout, Verdict
from server.jobs.rollout_decision import (
    Margins,
    compare,
    decide,
    looks_due,
    reason_for,
)
from server.telemetry.metrics import rollout_decided, set_rollout_share

_LEASE = "rollout"
_LEASE_S = 60.0
_EVERY_S = 5.0
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class RolloutDecisions:
    """Decides on the rollouts of one database."""

    rollouts: RolloutStore
    adapters: AdapterStore
    leases: Leases
    margins: Margins

    async def run(self, every_s: float = _EVERY_S) -> None:
        """Decides now and at intervals, for ever. Failures are logged and tried again."""
        while True:
            try:
                await self.step()
            except GuardError as error:
                _log.warning("The rollout could not be decided on; trying again later: %s", error)
            await asyncio.sleep(every_s)

    async def step(self) -> None:
        """Looks at the running rollout, if there is one, and ends it if that is due.

        Raises StoreUnavailable.
        """
        rollout = await self.rollouts.running()
        set_rollout_share(0.0 if rollout is None else rollout.share)
        if rollout is None:
            return
        try:
            token = await self.leases.acquire(_LEASE, this_process(), _LEASE_S)
        except LeaseHeld:
            return
        try:
            await self._decide(rollout)
        finally:
            await self.leases.release(_LEASE, token)

    async def _decide(self, rollout: StoredRollout) -> None:
        margins, number = self.margins, rollout.id
        if await self.adapters.active() != rollout.compared_with:
            # Activated in the moment in which the rollout was started.
            await self._end(rollout, "reverted", "another adapter came into force")
            return
        counts = (await self.rollouts.counts([number]))[number]
        due = looks_due(counts, margins)
        if due > rollout.looks and await self.rollouts.look(number, due):
            figures = compare(counts, margins, due)
            verdict = decide(figures)
            _log.info("Rollout %d, look %d: %s", number, due, "; ".join(map(str, figures)))
            if verdict is not None:
                await self._end(rollout, verdict, reason_for(verdict, figures))
                return
        if datetime.now(UTC) - rollout.created_at >= timedelta(hours=margins.hours):
            await self._end(rollout, "reverted", f"no decision within {margins.hours:g} hours")

    async def _end(self, rollout: StoredRollout, verdict: Verdict, reason: str) -> None:
        by = f"rollout {rollout.id}"
        if await self.rollouts.end(rollout.id, verdict, by=by, outcome=reason):
            rollout_decided(verdict)
            _log.info("Rollout %d is %s: %s", rollout.id, verdict, reason)
