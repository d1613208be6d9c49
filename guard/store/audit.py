"""The audit trail: who labelled, promoted, deleted or created keys, and when. Owns the audit rows.

An entry is written in the same transaction as the change it records.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from guard.store.store import Store, from_row
from guard.store.tables import AuditRow
from guard.store.text import storable


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One recorded action.

    actor: a key's name, or the user who ran the command. event: such as "flag.labelled".
    subject: such as "flag 12". details: never quotes a flag's text.
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
        """Adds an entry for a change outside this database."""
        async with self._transaction() as session:
            record(session, actor, event, subject, **details)

    async def list(self, limit: int) -> list[AuditEntry]:
        """Returns at most `limit` entries, newest first."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        async with self._reading() as session:
            return [from_row(AuditEntry, row) for row in await session.scalars(query)]


def record(session: AsyncSession, actor: str, event: str, subject: str, **details: Any) -> None:
    """Adds an entry to the session's current transaction."""
    session.add(
        AuditRow(
            created_at=datetime.now(UTC),
            actor=storable(actor),
            event=event,
            subject=storable(subject),
            details=storable(details),
        )
    )
