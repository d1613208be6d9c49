"""Rate limits of API keys. Owns the refusal, its headers, and how long it holds without another
database query. Does not count requests (guard/store/usage.py).

A rate limit is no security measure: while the database fails or is slow, requests pass.
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
_STORE_TIMEOUT_S = 2.0
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class RateLimitStatus:
    """A key's use of its requests per minute.

    remaining: requests left. reset_at: when the whole limit is available again.
    free_at: when the next request is allowed; not after `at` if one is allowed now.
    """

    limit: int
    remaining: int
    at: datetime
    free_at: datetime
    reset_at: datetime

    @property
    def exceeded(self) -> bool:
        """Whether this request exceeds the limit."""
        return self.free_at > self.at

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that OpenAI's API sends with every response."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{_seconds(self.reset_at - self.at)}s",
        }

    def refusal(self) -> Response:
        """Returns the response to a request over the limit."""
        wait = _seconds(self.free_at - self.at)
        return error_response(
            429,
            f"This key is limited to {self.limit} requests a minute; try again in {wait} s.",
            code="rate_limit_exceeded",
            headers={"retry-after": str(wait)},
        )


class Limits:
    """The rate limits of all keys, in one of the processes that share a database."""

    def __init__(self, store: UsageStore, clock: Callable[[], datetime] = _NOW) -> None:
        self._store = store
        self._clock = clock
        self._exceeded: dict[int, RateLimitStatus] = {}

    async def take(self, key: int, limit: int) -> RateLimitStatus | None:
        """Counts a request. Returns the key's status, or None when the store cannot tell."""
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                # Shielded: a cancelled statement would wait for its lock anyway.
                status = await asyncio.shield(spawn(self._take(key, limit, self._clock())))
        except (StoreUnavailable, TimeoutError) as error:
            problem = str(error) or "the database takes too long"
            _log.warning("The requests of key %d are not limited: %s", key, problem)
            return None
        if status.exceeded:
            self._exceeded[key] = status
            RATE_LIMITED.inc()
        return status

    async def _take(self, key: int, limit: int, now: datetime) -> RateLimitStatus:
        if key in self._exceeded:
            status = replace(self._exceeded[key], at=now)
            if status.exceeded:
                return status
        allowed, usage = await self._store.take(key, limit, now)
        return RateLimitStatus(
            limit,
            remaining=max(0, math.floor(limit - usage.used)),
            at=now,
            free_at=now if allowed else now + timedelta(seconds=usage.wait_s(limit)),
            reset_at=now + timedelta(seconds=usage.reset_s),
        )


def _seconds(duration: timedelta) -> int:
    """Returns whole seconds, rounded up, at least 1."""
    return max(1, math.ceil(duration.total_seconds()))
