"""When cycles run: durations, the lease that one job holds, and retries after failures."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete

from guard.errors import LeaseHeld, StoreUnavailable
from guard.store.database import LOCK_TIMEOUT_S
from guard.store.leases import Leases
from guard.store.runs import StoredRun
from guard.store.tables import LeaseRow
from guard.tasks import spawn
from refine.errors import RunInterrupted, ServerUnavailable
from refine.schedule import LEASE, leased, parse_duration, repeat
from tests.databases import migrated_file

AT_ONCE = timedelta(microseconds=1)
LONG_S = 60.0


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1.5h", timedelta(minutes=90)),
        (" 1d ", timedelta(days=1)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "6", "h", "0m", "-1h", "6 h", "six hours", "1w"])
def test_an_invalid_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="d: 6h"):
        parse_duration(text)


@pytest.fixture
async def leases(tmp_path: Path) -> AsyncIterator[Leases]:
    url = await asyncio.to_thread(migrated_file, tmp_path / "flags.db")
    store = Leases(url)
    yield store
    await store.close()


async def test_of_two_jobs_one_runs_and_the_other_learns_its_holder(leases: Leases) -> None:
    async with leased(leases, LONG_S):
        with pytest.raises(LeaseHeld, match="pid .* holds the lease 'refine'"):
            async with leased(leases, LONG_S):
                pytest.fail("two jobs are at work")
    async with leased(leases, LONG_S):
        pass


async def test_a_lease_is_renewed_while_the_job_works(leases: Leases) -> None:
    async with leased(leases, 0.3):
        began = datetime.now(UTC)
        while True:
            with pytest.raises(LeaseHeld) as held:
                await leases.acquire(LEASE, "another", LONG_S)
            assert held.value.until is not None
            if held.value.until > began + timedelta(seconds=0.6):
                return
            await asyncio.sleep(0.02)


async def test_a_job_that_lost_its_lease_stops_at_once(leases: Leases) -> None:
    async def job() -> None:
        async with leased(leases, 0.3):
            await _take_away(leases)
            await asyncio.Event().wait()

    with pytest.raises(RunInterrupted, match="The lease was lost"):
        await job()


async def test_a_database_that_fails_for_a_moment_does_not_end_a_job(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, renew, turns = asyncio.Event(), leases.renew, iter(range(3))

    async def failing_twice(name: str, token: str, ttl_s: float) -> None:
        if next(turns, 2) < 2:
            raise StoreUnavailable("database is locked")
        await renew(name, token, ttl_s)
        renewed.set()

    monkeypatch.setattr(leases, "renew", failing_twice)
    async with leased(leases, 1.2):
        await asyncio.wait_for(renewed.wait(), LONG_S)


async def test_a_job_stops_once_its_lease_may_have_expired(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise StoreUnavailable("database is locked")

    async def job() -> None:
        async with leased(leases, 0.3):
            monkeypatch.setattr(leases, "renew", failing)
            monkeypatch.setattr(leases, "release", failing)
            await asyncio.wait_for(asyncio.Event().wait(), LONG_S)

    with pytest.raises(RunInterrupted, match="The lease was lost"):
        await job()


async def test_a_cancelled_job_frees_the_lease(leases: Leases) -> None:
    at_work = asyncio.Event()

    async def job() -> None:
        async with leased(leases, LONG_S):
            at_work.set()
            await asyncio.Event().wait()

    working = spawn(job())
    await at_work.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await leases.acquire(LEASE, "the next", LONG_S)


async def test_a_job_that_ends_amid_a_renewal_frees_the_lease_at_once(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewing = asyncio.Event()
    renew = leases.renew

    async def watched(name: str, token: str, ttl_s: float) -> None:
        renewing.set()
        await renew(name, token, ttl_s)

    async def job(turns: int) -> None:
        renewing.clear()
        async with leased(leases, 0.003):
            await renewing.wait()
            for _ in range(turns):
                await asyncio.sleep(0)

    monkeypatch.setattr(leases, "renew", watched)
    for turns in range(150):
        await asyncio.wait_for(job(turns), LOCK_TIMEOUT_S / 2)


async def test_it_repeats_after_failures_and_reports_them(leases: Leases) -> None:
    messages: list[str] = []
    turns = iter([ServerUnavailable("no answer"), LeaseHeld("host-a pid 7 holds it"), None])
    third = asyncio.Event()

    async def once() -> StoredRun:
        failure = next(turns)
        if failure is not None:
            raise failure
        third.set()
        await asyncio.Event().wait()
        raise AssertionError

    working = spawn(repeat(AT_ONCE, once, messages.append))
    await asyncio.wait_for(third.wait(), 30)
    working.cancel()
    assert messages == [
        "the cycle failed and is retried in 0:00:00.000001: no answer",
        "another job is running: host-a pid 7 holds it",
    ]


async def _take_away(leases: Leases) -> None:
    """Simulates a pause so long that the lease expired and another job took it."""
    async with leases._transaction() as session:
        await session.execute(delete(LeaseRow))
    await leases.acquire(LEASE, "another", LONG_S)
