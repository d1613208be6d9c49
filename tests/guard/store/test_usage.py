"""Requests of rate-limited keys are counted exactly, on SQLite and PostgreSQL."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, text

from guard.errors import StoreUnavailable
from guard.store.database import connect
from guard.store.keys import KeyStore
from guard.store.usage import Usage, UsageStore

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture
async def usage(database: URL) -> AsyncIterator[UsageStore]:
    usage = UsageStore(database)
    yield usage
    await usage.close()


@pytest.fixture
async def key(database: URL) -> int:
    return await a_key(database)


async def a_key(database: URL) -> int:
    """Returns the number of a new key."""
    keys = KeyStore(database)
    key, _ = await keys.make("ci", "call", by="ada", requests_per_minute=1)
    await keys.close()
    return key.id


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


async def minutes(database: URL) -> list[tuple[int, int]]:
    """Returns all rows: minutes after noon, and requests."""
    engine = connect(database)
    async with engine.connect() as connection:
        rows = [*await connection.execute(text("SELECT minute, requests FROM key_usage"))]
    await engine.dispose()
    return sorted((minute - int(NOON.timestamp()) // 60, requests) for minute, requests in rows)


async def test_as_many_as_the_limit_are_within_it(usage: UsageStore, key: int) -> None:
    taken = [await usage.take(key, 3, at(second)) for second in range(5)]
    assert [allowed for allowed, _ in taken] == [True, True, True, False, False]
    assert [counted.current for _, counted in taken] == [1, 2, 3, 3, 3]


async def test_the_minute_before_counts_by_its_share(usage: UsageStore, key: int) -> None:
    for _ in range(4):
        assert (await usage.take(key, 4, at(59)))[0]
    assert not (await usage.take(key, 4, at(60)))[0]
    allowed = [(await usage.take(key, 4, at(second)))[0] for second in (74, 75, 76, 89, 90, 105)]
    assert allowed == [False, True, False, False, True, True]
    assert (await usage.take(key, 4, at(180)))[1].used == 1


async def test_keys_are_counted_apart(database: URL, usage: UsageStore, key: int) -> None:
    other = await a_key(database)
    assert [(await usage.take(key_id, 1, NOON))[0] for key_id in (key, other, key)] == [
        *(True, True),
        False,
    ]


async def test_no_more_than_two_minutes_are_kept(
    database: URL, usage: UsageStore, key: int
) -> None:
    for second in (0, 60, 60, 120, 200):
        assert (await usage.take(key, 9, at(second)))[0]
    assert await minutes(database) == [(2, 1), (3, 1)]


async def test_bodies_with_and_without_a_key(database: URL, usage: UsageStore, key: int) -> None:
    await usage.take(key, 9, NOON)
    engine = connect(database)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM keys"))
    await engine.dispose()
    assert await minutes(database) == []
    with pytest.raises(StoreUnavailable):
        await usage.take(key, 9, NOON)


def take_often(url: URL, key: int, times: int) -> None:
    """Runs in its own process."""

    async def run() -> None:
        usage = UsageStore(url)
        await asyncio.gather(*(usage.take(key, 40, NOON) for _ in range(times)))
        await usage.close()

    asyncio.run(run())


def test_several_processes_together_keep_to_the_limit(database: URL) -> None:
    key = asyncio.run(a_key(database))
    processes = [PROCESSES.Process(target=take_often, args=(database, key, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert asyncio.run(minutes(database)) == [(0, 40)]


@given(
    limit=st.integers(1, 100),
    before=st.integers(0, 100),
    current=st.integers(0, 100),
    passed=st.floats(0, 1, exclude_max=True),
)
def test_after_the_wait_one_more_is_within_the_limit(
    limit: int, before: int, current: int, passed: float
) -> None:
    usage = Usage(min(before, limit), min(current, limit), passed)
    wait = usage.wait_s(limit)
    minutes = passed + wait / 60
    if minutes < 1:
        later = Usage(usage.before, usage.current, minutes)
    else:
        later = Usage(usage.current, 0, minutes - 1)
    assert later.used + 1 <= limit + 1e-6
    assert 0 <= wait <= 120
    assert (wait > 0) == (usage.used + 1 > limit)
    assert usage.reset_s <= 120
