"""A process reports what it serves now, also after the database failed."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, repeat

from sqlalchemy import URL

from guard.errors import StoreUnavailable
from guard.store.leases import this_process
from guard.store.replicas import Replica, ReplicaStore
from guard.tasks import spawn
from server.jobs.replica_reports import report_regularly, serving
from tests.guard.store.test_replicas import FIRST


async def test_it_reports_what_it_serves_now(database: URL) -> None:
    reported, failures = asyncio.Event(), 1

    class Watched(ReplicaStore):
        async def report(self, replica: Replica) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise StoreUnavailable("no database")
            await super().report(replica)
            if replica.adapter == 3:
                reported.set()

    store = Watched(database)
    adapters: Iterator[int | None] = chain([None, None], repeat(3))

    def served() -> Replica:
        now = datetime.now(UTC)
        return replace(FIRST, name=this_process(), adapter=next(adapters), seen_at=now)

    reports = spawn(report_regularly(store, served, every_s=0))
    await asyncio.wait_for(reported.wait(), timeout=30)
    reports.cancel()
    (one,) = await serving(store)
    assert (one.name, one.adapter) == (this_process(), 3)
    await store.close()


async def test_one_that_fell_silent_is_not_serving(database: URL) -> None:
    store = ReplicaStore(database)
    await store.report(FIRST)
    assert await serving(store) == []
    await store.close()
