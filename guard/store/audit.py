"""The audit trail: who labelled, promoted, deleted and made keys, and when. Owns the table's rows.

An entry is written in the transaction of what it tells of, so that neither is without the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from guard.store.store import Store
from guard.store.tables import AuditRow
from guard.store.text import storable


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing somebody did.

    actor: a key's name, or who ran the command. event: what, as "flag.labelled". subject: to what,
    as "flag 12". details: never any text of a flag.
    """

    id: int
    created_at: datetime
    actor: str
    event: str
    subject: str
    details: Mapping[str, Any]


class AuditStore(Store):
    """The trail of one database. Every method raises StoreUnavailable when the database fails."""

    async def add(self, actor: str, event: str, subject: str, **details: Any) -> None:
        """Adds an entry of what is in no table here."""
        async with self._transaction() as session:
            record(session, actor, event, subject, **details)

    async def list(self, limit: int) -> list[Entry]:
        """At most `limit` entries, newest first."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        async with self._transaction() as session:
            return [_entry(row) for row in await session.scalars(query)]


def record(session: AsyncSession, actor: str, event: str, subject: str, **details: Any) -> None:
    """Adds an entry to what the session is about to commit."""
    session.add(
        AuditRow(
            created_at=datetime.now(UTC),
            actor=storable(actor),
            event=event,
            subject=storable(subject),
            details=storable(details),
        )
    )


def _entry(row: AuditRow) -> Entry:
    return Entry(**{name.name: getattr(row, name.name) for name in fields(Entry)})
