"""Answers are counted in the database, and no counts are lost while that fails."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import URL

from guard.criteria import Place
from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store.traffic import Traffic, TrafficStore
from guard.tasks import spawn
from server.telemetry.traffic_counts import CountingObserver

DAY = timedelta(days=1)


class Failing(TrafficStore):
    """Fails as often as it is told to, and sets an event when it has stored something."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.failures = 0
        self.during: CountingObserver | None = None
        self.kept = asyncio.Event()

    async def add(self, when: datetime, traffic: Traffic) -> None:
        if self.during is not None:
            answer(self.during)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("gone")
        await super().add(when, traffic)
        self.kept.set()


@pytest.fixture
async def store(database: URL) -> AsyncIterator[Failing]:
    store = Failing(database)
    yield store
    await store.close()


def answer(observer: CountingObserver, *, flagged: bool = False) -> None:
    """Observes one request with one answer."""
    action = Action.BLOCK if flagged else Action.PASS
    observer.action(action, adapter="base", policy="default")
    if flagged:
        observer.flag_written(Place.OUTPUT, 0.001)
    observer.overhead(0.25)


async def kept(store: TrafficStore) -> Traffic:
    (period,) = await store.periods(datetime.now(UTC), DAY, 1)
    return period.traffic


async def test_answers_are_counted_once(store: Failing) -> None:
    observer = CountingObserver(store)
    await observer.flush()
    assert not store.kept.is_set()
    answer(observer)
    answer(observer, flagged=True)
    await observer.flush()
    await observer.flush()
    assert await kept(store) == Traffic(answers=2, flagged=1, requests=2, overhead_s=0.5)


async def test_a_flagged_request_is_no_flagged_answer(store: Failing) -> None:
    observer = CountingObserver(store)
    answer(observer)
    observer.flag_written(Place.INPUT, 0.001)
    await observer.flush()
    assert await kept(store) == Traffic(answers=1, requests=1, overhead_s=0.25)


async def test_a_database_that_fails_loses_nothing(store: Failing) -> None:
    observer = CountingObserver(store)
    store.failures = 2
    for _ in range(2):
        answer(observer, flagged=True)
        with pytest.raises(StoreUnavailable):
            await observer.flush()
    await observer.flush()
    assert await kept(store) == Traffic(answers=2, flagged=2, requests=2, overhead_s=0.5)


async def test_answers_during_a_flush_are_counted_in_the_next(store: Failing) -> None:
    observer = CountingObserver(store)
    answer(observer)
    store.during = observer
    await observer.flush()
    store.during = None
    assert (await kept(store)).answers == 1
    await observer.flush()
    assert (await kept(store)).answers == 2


async def test_it_goes_on_after_failures(store: Failing) -> None:
    observer = CountingObserver(store)
    answer(observer)
    store.failures = 3
    keeping = spawn(observer.flush_regularly(every_s=0))
    await asyncio.wait_for(store.kept.wait(), timeout=30)
    keeping.cancel()
    await asyncio.wait({keeping})
    assert store.failures == 0
    assert (await kept(store)).answers == 1


async def test_processes_on_one_database_add_up(database: URL, store: Failing) -> None:
    other = TrafficStore(database)
    for observer in (CountingObserver(store), CountingObserver(other)):
        answer(observer)
        await observer.flush()
    assert (await kept(store)).answers == 2
    await other.close()
