"""Traffic over time, for the console's charts. Owns one row a minute, to which all processes on a
database add. Prometheus metrics count the same events (server/telemetry/metrics.py)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from guard.criteria import Place
from guard.store.store import Store
from guard.store.sums import Sums
from guard.store.tables import FlagRow, TrafficRow

_MINUTE_S = 60


@dataclass(frozen=True)
class Traffic(Sums):
    """Sums over some time.

    answers: judged answers, of which `flagged` were flagged. requests: requests with answers.
    overhead_s: the time that the guard added to them, in total.
    """

    answers: int = 0
    flagged: int = 0
    requests: int = 0
    overhead_s: float = 0.0


@dataclass(frozen=True)
class Period:
    """The traffic from `start` on, and how reviewers labelled the flagged answers of that time."""

    start: datetime
    traffic: Traffic = Traffic()
    reviewed: int = 0
    dismissed: int = 0


class TrafficStore(Store):
    """The traffic of one database. Every method raises StoreUnavailable when the database fails."""

    async def add(self, when: datetime, traffic: Traffic) -> None:
        """Adds the traffic to the minute of `when`."""
        adding = self._adding(TrafficRow, {"minute": _minute(when)}, asdict(traffic))
        async with self._transaction() as session:
            await session.execute(adding)

    async def periods(self, until: datetime, length: timedelta, number: int) -> Sequence[Period]:
        """Returns the last `number` periods of that length, in whole minutes, oldest first. The
        newest one contains `until`."""
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
            FlagRow.created_at >= since,
            FlagRow.review.is_not(None),
            FlagRow.place == Place.OUTPUT,
        )
        async with self._reading() as session:
            traffic_by_period = {
                int(row[0]): Traffic(
                    *(kind(value) for kind, value in zip(_KINDS, row[1:], strict=True))
                )
                for row in await session.execute(traffic)
            }
            labels = [
                (_minute(when) // minutes, review)
                for when, review in await session.execute(reviewed)
            ]
        return [
            Period(
                datetime.fromtimestamp(period * minutes * _MINUTE_S, UTC),
                traffic_by_period.get(period, Traffic()),
                sum(at == period for at, _ in labels),
                sum(at == period and review == "dismissed" for at, review in labels),
            )
            for period in range(first, first + number)
        ]


_KINDS = (int, int, int, float)


def _minute(when: datetime) -> int:
    return int(when.timestamp()) // _MINUTE_S
