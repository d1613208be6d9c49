"""The API processes that serve, on any machine, and what each of them serves. Owns their rows. A
process that ended is known by its silence.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select

from guard.store.store import Store, from_row
from guard.store.tables import ReplicaRow
from guard.store.text import storable

_KEPT = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One API process. name: host and process. adapter: the version it serves, None for the base.
    ready: whether it had made a real critique. seen_at: when it reported this."""

    name: str
    started_at: datetime
    seen_at: datetime
    ready: bool
    adapter: int | None
    model: str
    model_revision: str
    policy_hash: str
    version: str


class ReplicaStore(Store):
    """The processes that share one database. Every method raises StoreUnavailable when the database
    fails."""

    async def report(self, replica: Replica) -> None:
        """Stores what a process serves now, and forgets those that have been silent for a day."""
        values = asdict(replica)
        values |= {name: storable(text) for name, text in values.items() if isinstance(text, str)}
        upsert = self._insert(ReplicaRow).values(**values)
        upsert = upsert.on_conflict_do_update(index_elements=[ReplicaRow.name], set_=values)
        async with self._transaction() as session:
            await session.execute(upsert)
            silent = ReplicaRow.seen_at < replica.seen_at - _KEPT
            await session.execute(delete(ReplicaRow).where(silent))

    async def since(self, time: datetime) -> Sequence[Replica]:
        """Returns the processes that have reported since then, by name."""
        query = select(ReplicaRow).where(ReplicaRow.seen_at >= time).order_by(ReplicaRow.name)
        async with self._reading() as session:
            return [from_row(Replica, row) for row in await session.scalars(query)]
