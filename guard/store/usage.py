"""Usage of rate-limited keys. Owns a row for each key and minute, in which all processes on a
database count, and the sliding window over two minutes. Does not refuse requests
(server/auth/limits.py).
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, select, update

from guard.store.store import Store
from guard.store.tables import KeyUsageRow

_MINUTE_S = 60


@dataclass(frozen=True)
class Usage:
    """A key's requests at some time.

    before: in the previous minute. current: in this minute. passed: the elapsed share of it.
    """

    before: int
    current: int
    passed: float

    @property
    def used(self) -> float:
        """Requests in the last 60 seconds, if those of the previous minute were evenly spread."""
        return self.before * (1 - self.passed) + self.current

    @property
    def reset_s(self) -> float:
        """Seconds until all of these have left the window."""
        minutes = 2 if self.current else 1 if self.before else self.passed
        return (minutes - self.passed) * _MINUTE_S

    def wait_s(self, limit: int) -> float:
        """Seconds until another request is within the limit, if there are no others."""
        if self.used + 1 <= limit:
            return 0.0
        if self.current < limit:
            minutes = 1 - (limit - self.current - 1) / self.before
        else:
            minutes = 2 - (limit - 1) / self.current
        return (minutes - self.passed) * _MINUTE_S


class UsageStore(Store):
    """The usage in one database. Every method raises StoreUnavailable when the database fails."""

    async def take(self, key: int, limit: int, when: datetime) -> tuple[bool, Usage]:
        """Counts a request within the key's limit. Returns whether it is within, and the usage."""
        minute, seconds = divmod(when.timestamp(), _MINUTE_S)
        this, last = (_in_minute(key, int(minute) - ago) for ago in (0, 1))
        async with self._transaction() as session:
            # First, because it locks the row against concurrent requests of the same key.
            counted = await session.scalar(self._increment(key, int(minute)))
            before = await session.scalar(select(KeyUsageRow.requests).where(last))
            usage = Usage(before or 0, int(counted or 1) - 1, seconds / _MINUTE_S)
            if usage.wait_s(limit) > 0:
                fewer = KeyUsageRow.requests - 1
                await session.execute(update(KeyUsageRow).where(this).values(requests=fewer))
                return False, usage
            if usage.current == 0:
                old = (KeyUsageRow.key_id == key) & (KeyUsageRow.minute < int(minute) - 1)
                await session.execute(delete(KeyUsageRow).where(old))
            return True, replace(usage, current=usage.current + 1)

    def _increment(self, key: int, minute: int) -> Any:
        """Increments the key's requests in that minute and returns the new count."""
        columns = [KeyUsageRow.key_id, KeyUsageRow.minute]
        return (
            self._insert(KeyUsageRow)
            .values(key_id=key, minute=minute, requests=1)
            .on_conflict_do_update(
                index_elements=columns, set_={"requests": KeyUsageRow.requests + 1}
            )
            .returning(KeyUsageRow.requests)
        )


def _in_minute(key: int, minute: int) -> ColumnElement[bool]:
    return (KeyUsageRow.key_id == key) & (KeyUsageRow.minute == minute)
