"""The staged rollout that this process takes part in. Owns who is answered with which adapter, that
the new one stays loaded meanwhile, and the counts until they are stored. Does not count
(comparison.py), decide how a rollout ends (server/jobs/rollouts.py) or store rows (store/).
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from vllm.lora.request import LoRARequest

from guard.adapters import Adapters, adapter_name, name_of
from guard.call import GuardCall
from guard.errors import AdapterRefused, AdapterUnknown
from guard.store.leases import this_process
from guard.store.rollouts import RolloutCounts, StoredRollout, Verdict
from guard.tasks import keep_refreshing

_LOADING_S = 120.0
_log = logging.getLogger("vllm.setback")


class Source(Protocol):
    """The part of RolloutStore that Rollouts uses."""

    async def running(self) -> StoredRollout | None:
        """Returns the rollout that is running, or None."""

    async def add(self, number: int, counts: RolloutCounts) -> None:
        """Adds what this process counted."""

    async def end(self, number: int, status: Verdict, *, by: str, outcome: str) -> bool:
        """Ends a rollout. Returns False when it had ended."""


class Rollouts:
    """Chooses the adapter of each call. Each API process has one.

    Usage:
        await rollouts.refresh()
        spawn(rollouts.watch(2.0))
        async with rollouts.pinned(call):
            ...
    """

    def __init__(self, adapters: Adapters, source: Source) -> None:
        self.adapters = adapters
        self._source = source
        self._held = AsyncExitStack()
        self._counts: dict[int, RolloutCounts] = {}
        self.current: StoredRollout | None = None
        """The running rollout, once this process has loaded its adapter."""

    @asynccontextmanager
    async def pinned(self, call: GuardCall) -> AsyncIterator[None]:
        """Pins the call to its adapter, which stays loaded for the block."""
        version = self._version_for(call.client)
        async with self.adapters.of(version) as lora_request:
            call.pin(adapter_name(lora_request), version)
            yield

    @asynccontextmanager
    async def adapter_of(
        self, call: GuardCall, options: Mapping[str, Any]
    ) -> AsyncIterator[LoRARequest | None]:
        """Yields the adapter that a request names among its engine options, or else the one that
        its call is pinned to."""
        own = options.get("lora_request")
        if own is not None:
            call.adapter = adapter_name(own)
            yield own
            return
        if call.adapter is None:
            call.pin(self.adapters.active_name, self.adapters.active)
        async with self.adapters.of(call.version) as lora_request:
            yield lora_request

    def _version_for(self, client: str | None) -> int | None:
        rollout, active = self.current, self.adapters.active
        if rollout is None or client is None or active != rollout.compared_with:
            return active
        return rollout.version if place(rollout, client) < rollout.share else active

    def count(self, number: int, counts: RolloutCounts) -> None:
        """Adds to the counts of a rollout, which are stored with the next refresh."""
        self._counts[number] = self._counts.get(number, RolloutCounts()) + counts

    async def watch(self, poll_s: float) -> None:
        """Refreshes until cancelled. Logs failures and retries."""
        await keep_refreshing(self.refresh, poll_s, "which adapter is being rolled out")

    async def refresh(self) -> None:
        """Stores the counts, reads which rollout is running, and loads or drops its adapter.

        Raises StoreUnavailable, and then keeps the counts.
        """
        await self._flush()
        running, current = await self._source.running(), self.current
        if current is not None and (running is None or running.id != current.id):
            # The adapter of a rollout that completed is active now, and stays loaded.
            await self.adapters.refresh()
            await self._leave(current)
        if running is not None and self.current is None:
            await self._join(running)

    async def _flush(self) -> None:
        for number, counts in list(self._counts.items()):
            await self._source.add(number, counts)
            # Others may have been counted meanwhile.
            self._counts[number] -= counts
            if self._counts[number] == RolloutCounts():
                del self._counts[number]

    async def _join(self, rollout: StoredRollout) -> None:
        """Loads the rollout's adapter, so that requests get it. Ends the rollout otherwise."""
        try:
            async with asyncio.timeout(_LOADING_S):
                await self._held.enter_async_context(self.adapters.of(rollout.version))
        except TimeoutError:
            problem = f"Adapter {rollout.version}: no slot was free in {_LOADING_S:.0f} seconds"
        except (AdapterRefused, AdapterUnknown) as error:
            problem = str(error)
        else:
            self.current = rollout
            _log.info("Rollout %d: %s for %.3g%%", *_announced(rollout))
            return
        _log.error("%s. Serving %s alone.", problem, self.adapters.active_name)
        outcome = f"a server could not load it: {problem}"
        await self._source.end(rollout.id, "reverted", by=this_process(), outcome=outcome)

    async def _leave(self, rollout: StoredRollout) -> None:
        self.current = None
        await self._held.aclose()
        if self.adapters.active != rollout.version:
            await self.adapters.unload(rollout.version)
        _log.info("Rollout %d has ended; serving %s", rollout.id, self.adapters.active_name)


def place(rollout: StoredRollout, client: str) -> float:
    """Returns where a client is in [0, 1): the same in every process, and anew in each rollout."""
    digest = hashlib.sha256(f"{rollout.id} {client}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def is_shadowed(rollout: StoredRollout, client: str) -> bool:
    """Whether the new adapter also judges this client's answers: the rollout's share of those that
    the old one answers."""
    return rollout.share <= place(rollout, client) < 1 - (1 - rollout.share) ** 2


def _announced(rollout: StoredRollout) -> tuple[int, str, float]:
    return rollout.id, name_of(rollout.version), 100 * rollout.share
