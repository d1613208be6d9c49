"""Leases: what only one process may do at a time. Owns their rows. A lease that is not renewed
expires, so that a dead holder does not block others. The machines' clocks must agree to seconds.
"""

import os
import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import delete, update

from guard.errors import LeaseHeld, LeaseLost
from guard.store.store import Store
from guard.store.tables import LeaseRow
from guard.store.text import storable


class Leases(Store):
    """The leases in one database. Every method raises StoreUnavailable when the database fails.

    Usage:
        token = await leases.acquire("refine", "host 4711", ttl_s=60)
        await leases.renew("refine", token, ttl_s=60)
        await leases.release("refine", token)
    """

    async def acquire(self, name: str, holder: str, ttl_s: float) -> str:
        """Takes the lease for `ttl_s` seconds. Returns the token to renew and release it with.

        holder: shown to others who want the lease. Raises LeaseHeld.
        """
        token, now = uuid4().hex, datetime.now(UTC)
        values = {"holder": storable(holder), "token": token, "expires_at": _later(now, ttl_s)}
        take = self._insert(LeaseRow).values(name=name, **values)
        # One statement, so that exactly one of several concurrent callers succeeds.
        take = take.on_conflict_do_update(
            index_elements=[LeaseRow.name], set_=values, where=LeaseRow.expires_at <= now
        ).returning(LeaseRow.token)
        async with self._transaction() as session:
            if await session.scalar(take) == token:
                return token
            row = await session.get(LeaseRow, name)
        if row is None:
            return await self.acquire(name, holder, ttl_s)
        raise _held(row)

    async def held(self, name: str) -> LeaseHeld | None:
        """Returns what acquire() would raise now, or None when the lease is free."""
        async with self._reading() as session:
            row = await session.get(LeaseRow, name)
        return None if row is None or row.expires_at <= datetime.now(UTC) else _held(row)

    async def renew(self, name: str, token: str, ttl_s: float) -> None:
        """Extends the lease to `ttl_s` seconds from now. Raises LeaseLost if another has it."""
        held = (LeaseRow.name == name, LeaseRow.token == token)
        renewal = update(LeaseRow).where(*held).values(expires_at=_later(datetime.now(UTC), ttl_s))
        async with self._transaction() as session:
            renewed = await session.scalar(renewal.returning(LeaseRow.token))
        if renewed is None:
            raise LeaseLost(f"The lease {name!r} was lost; another process may hold it now")

    async def release(self, name: str, token: str) -> None:
        """Releases the lease if it is still held."""
        held = (LeaseRow.name == name, LeaseRow.token == token)
        async with self._transaction() as session:
            await session.execute(delete(LeaseRow).where(*held))


def this_process() -> str:
    """Returns a name that no other process has while this one lives, to hold leases by."""
    return f"{socket.gethostname()} pid {os.getpid()}"


def _held(row: LeaseRow) -> LeaseHeld:
    return LeaseHeld(
        f"{row.holder} holds the lease {row.name!r} until {row.expires_at:%Y-%m-%d %H:%M:%S} UTC, "
        "or longer if it is still running",
        holder=row.holder,
        until=row.expires_at,
    )


def _later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)
