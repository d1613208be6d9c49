"""What the server answered over time, for charts. Owns one row a minute, which all processes on a
database add to. Prometheus counts the same for those who run it (server/telemetry/metrics.py)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from guard.store.store import Store
from guard.store.tables import FlagRow, TrafficRow

_MINUTE_S = 60


@dataclass(frozen=True)
class Traffic:
    """Sums over some time.

    answers: judged, of which `flagged` were. requests: that answers were asked for in, and what
    the guard added to them together, in seconds.
    """

    answers: int = 0
    flagged: int = 0
    requests: int = 0
    overhead_s: float = 0.0


@dataclass(frozen=True)
class Period:
    """Traffic from `start` on, and what reviewers said of the flags of that time."""

    start: datetime
    traffic: Traffic = Traffic()
    reviewed: int = 0
    dismissed: int = 0


class TrafficStore(Store):
    """The traffic of one database. Every method raises StoreUnavailable when the database fails."""

    async def add(self, when: datetime, traffic: Traffic) -> None:
        """Adds to the minute of `when`."""
        values = asdict(traffic)
        insert = self._insert(TrafficRow).values(minute=_minute(when), **values)
        summed = {name: getattr(TrafficRow, name) + insert.excluded[name] for name in values}
        statement = insert.on_conflict_do_update(index_elements=[TrafficRow.minute], set_=summed)
        async with self._transaction() as session:
            await session.execute(statement)

    async def periods(self, until: datetime, length: timedelta, number: int) -> Sequence[Period]:
        """The last `number` periods of that length, whole minutes, oldest first; the newest is the
        one that `until` is in."""
        minutes = int(length.total_seconds() // _MINUTE_S)
        first = _minute(until) // minutes - number + 1
        since = datetime.fromtimestamp(first * minutes * _MINUTE_S, UTC)
        sums = {name: func.sum(getattr(TrafficRow, name)) for name in Traffic.__dataclass_fields__}
        index = (TrafficRow.minute - TrafficRow.minute % minutes) / minutes
        traffic = (
            select(index, *sums.values())
            .where(TrafficRow.minute >= first * minutes)
            .group_by(index)
        )
        reviewed = select(FlagRow.created_at, FlagRow.review).where(
            FlagRow.created_at >= since, FlagRow.review.is_not(None)
        )
        async with self._transaction() as session:
            found = {
                int(row[0]): Traffic(
                    *(kind(value) for kind, value in zip(_KINDS, row[1:], strict=True))
                )
                for row in await session.execute(traffic)
            }
            labels = [
                (_minute(when) // minutes, said) for when, said in await session.execute(reviewed)
            ]
        return [
            Period(
                datetime.fromtimestamp(each * minutes * _MINUTE_S, UTC),
                found.get(each, Traffic()),
                sum(at == each for at, _ in labels),
                sum(at == each and said == "dismissed" for at, said in labels),
            )
            for each in range(first, first + number)
        ]


_KINDS = (int, int, int, float)


def _minute(when: datetime) -> int:
    return int(when.timestamp()) // _MINUTE_S
