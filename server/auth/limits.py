"""Refuses keys that are used more often than they may be. Owns the refusal, its headers and how
long it holds without another look at the database; guard/store/usage.py counts.

A limit is no safety matter: while the database fails or takes long, requests are let through.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from starlette.responses import Response

from guard.errors import StoreUnavailable
from guard.store.usage import UsageStore
from guard.tasks import spawn
from server.errors import error_response
from server.telemetry.metrics import RATE_LIMITED

_NOW = partial(datetime.now, UTC)
_PATIENCE_S = 2.0
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class Standing:
    """How a key stands with its limit of requests a minute.

    remaining: requests it has left. reset_at: when it has all of them again.
    free_at: when it has one again; not after `at` if it has now.
    """

    limit: int
    remaining: int
    at: datetime
    free_at: datetime
    reset_at: datetime

    @property
    def over(self) -> bool:
        """Whether the request is one too many."""
        return self.free_at > self.at

    @property
    def headers(self) -> Mapping[str, str]:
        """As OpenAI sends them with every response."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{_seconds(self.reset_at - self.at)}s",
        }

    def refusal(self) -> Response:
        """What a caller sees who is over the limit."""
        wait = _seconds(self.free_at - self.at)
        return error_response(
            429,
            f"This key is for {self.limit} requests a minute; try again in {wait} s.",
            code="rate_limit_exceeded",
            headers={"retry-after": str(wait)},
        )


class Limits:
    """The limits of all keys, as one of the processes that share a database holds them."""

    def __init__(self, store: UsageStore, clock: Callable[[], datetime] = _NOW) -> None:
        self._store = store
        self._clock = clock
        self._over: dict[int, Standing] = {}

    async def take(self, key: int, limit: int) -> Standing | None:
        """How the key of that number stands with one more request; None while nobody can tell."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                # Shielded: a statement that is cancelled would wait for its lock all the same.
                standing = await asyncio.shield(spawn(self._take(key, limit, self._clock())))
        except (StoreUnavailable, TimeoutError) as error:
            problem = str(error) or "the database takes too long"
            _log.warning("The requests of key %d are not limited: %s", key, problem)
            return None
        if standing.over:
            self._over[key] = standing
            RATE_LIMITED.inc()
        return standing

    async def _take(self, key: int, limit: int, now: datetime) -> Standing:
        if key in self._over:
            known = replace(self._over[key], at=now)
            if known.over:
                return known
        allowed, usage = await self._store.take(key, limit, now)
        return Standing(
            limit,
            remaining=max(0, math.floor(limit - usage.used)),
            at=now,
            free_at=now if allowed else now + timedelta(seconds=usage.wait_s(limit)),
            reset_at=now + timedelta(seconds=usage.reset_s),
        )


def _seconds(time: timedelta) -> int:
    """In whole seconds, after which it is over."""
    return max(1, math.ceil(time.total_seconds()))
