"""Traffic by the minute, on both kinds of database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import URL

from guard.store.flags import Flag, FlagStore
from guard.store.review import Label, ReviewStore
from guard.store.traffic import Traffic, TrafficStore

NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def test_traffic_of_one_minute_adds_up(database: URL) -> None:
    store = TrafficStore(database)
    await store.add(NOON, Traffic(3, 1, 2, 0.5))
    await store.add(NOON, Traffic(4, 0, 4, 0.25))
    (period,) = await store.periods(NOON, timedelta(minutes=1), 1)
    assert period.traffic == Traffic(7, 1, 6, 0.75)
    await store.close()


async def test_periods_are_the_last_ones_oldest_first(database: URL) -> None:
    store = TrafficStore(database)
    for hours in (0, 1, 1, 5):
        await store.add(NOON - hours * HOUR, Traffic(answers=1))
    periods = await store.periods(NOON, HOUR, 3)
    assert [period.start.hour for period in periods] == [10, 11, 12]
    assert [period.traffic.answers for period in periods] == [0, 2, 1]
    await store.close()


@pytest.mark.parametrize(("review", "dismissed"), [("dismissed", 1), ("confirmed", 0)])
async def test_labels_count_when_the_flag_was_raised(
    database: URL, flag: Flag, review: str, dismissed: int
) -> None:
    flags, reviews, store = FlagStore(database), ReviewStore(database), TrafficStore(database)
    number = await flags.add(replace(flag, created_at=NOON - HOUR))
    await flags.add(replace(flag, created_at=NOON - HOUR))
    await reviews.label([number], Label(review=review), "anna")  # type: ignore[arg-type]
    before, now = await store.periods(NOON, HOUR, 2)
    assert (before.reviewed, before.dismissed) == (1, dismissed)
    assert (now.reviewed, now.dismissed) == (0, 0)
    for opened in (flags, reviews, store):
        await opened.close()
