"""What happened that others want to know: flags, ended runs and rollouts, activated adapters and
policies. Owns how far events were delivered, so that none is left out or forgotten, and their
fields, which quote no text. Sends nothing (server/jobs/webhooks.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import func, select, update

from guard.store.store import Store
from guard.store.tables import ActivationRow, FlagRow, PolicyFileRow, RolloutRow, RunRow, WebhookRow

EventType = Literal[
    "flag.created", "run.ended", "adapter.activated", "rollout.ended", "policy.activated"
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)

_ROWS: Mapping[str, Any] = {
    "flag.created": FlagRow,
    "run.ended": RunRow,
    "adapter.activated": ActivationRow,
    "rollout.ended": RolloutRow,
    "policy.activated": PolicyFileRow,
}
_SETTLED = timedelta(seconds=30)
"""A number that is missing may still be committed for so long."""


@dataclass(frozen=True)
class Event:
    """Something that happened. number: of its row. data: its fields."""

    type: EventType
    number: int
    time: datetime
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The same at every attempt to deliver it."""
        return f"{self.type}-{self.number}"


class WebhookStore(Store):
    """The events of one database. Every method raises StoreUnavailable when the database fails."""

    async def begin(self) -> None:
        """Sets where delivery begins: at what happens from now on, unless it had begun before."""
        async with self._transaction() as session:
            for kind in EVENT_TYPES:
                newest = await session.scalar(select(func.max(_ROWS[kind].id)))
                row = {"type": kind, "delivered": newest or 0}
                await session.execute(self._insert(WebhookRow).values(row).on_conflict_do_nothing())

    async def pending(self, kind: EventType, limit: int) -> Sequence[Event]:
        """Returns at most `limit` events that were not delivered, oldest first."""
        row = _ROWS[kind]
        async with self._reading() as session:
            delivered = await session.scalar(
                select(WebhookRow.delivered).where(WebhookRow.type == kind)
            )
            query = select(row).where(row.id > (delivered or 0)).order_by(row.id).limit(limit)
            rows = list(await session.scalars(query))
        return [_event(kind, row) for row in _settled(rows, delivered or 0)]

    async def delivered(self, event: Event) -> None:
        """Records that all events of that type up to this one were delivered."""
        statement = (
            update(WebhookRow)
            .where(WebhookRow.type == event.type, WebhookRow.delivered < event.number)
            .values(delivered=event.number)
        )
        async with self._transaction() as session:
            await session.execute(statement)


def _settled(rows: Sequence[Any], delivered: int) -> Iterator[Any]:
    """Yields rows up to the first that may change, or that another may come before: PostgreSQL
    commits numbers in any order."""
    for row in rows:
        fresh = row.created_at > datetime.now(UTC) - _SETTLED
        if (fresh and row.id != delivered + 1) or getattr(row, "status", "") == "running":
            return
        delivered = row.id
        yield row


def _event(kind: EventType, row: Any) -> Event:
    ended = row.finished_at if isinstance(row, RunRow | RolloutRow) else None
    return Event(kind, row.id, ended or row.created_at, {"id": row.id, **_data(row)})


def _data(row: Any) -> dict[str, Any]:
    if isinstance(row, FlagRow):
        names = ("request_id", "route", "place", "categories", "harm", "action", "adapter")
        return {name: getattr(row, name) for name in (*names, "policy_hash")}
    if isinstance(row, RunRow):
        return {"status": row.status, "reasons": row.reasons}
    if isinstance(row, RolloutRow):
        return {"version": row.version, "status": row.status, "outcome": row.outcome}
    if isinstance(row, ActivationRow):
        return {"version": row.version, "by": row.by, "reason": row.reason}
    return {"by": row.by}
