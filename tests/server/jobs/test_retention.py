"""Old flags are deleted, also after the database failed."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import URL

from guard.errors import StoreUnavailable
from guard.store.flags import Flag, FlagStore
from guard.store.review import Filter, ReviewStore
from guard.tasks import spawn
from server.jobs.retention import delete_expired


async def test_older_flags_are_deleted_and_the_others_kept(
    database: URL, store: FlagStore, flag: Flag
) -> None:
    deleted = asyncio.Event()

    class Watched(ReviewStore):
        async def delete(self, which: Filter, by: str) -> list[int]:
            numbers = await super().delete(which, by)
            deleted.set()
            return numbers

    reviews = Watched(database)
    now = datetime.now(UTC)
    old = await store.add(replace(flag, created_at=now - timedelta(days=31)))
    kept = await store.add(replace(flag, created_at=now - timedelta(days=29)))
    keeping = spawn(delete_expired(30, reviews))
    await asyncio.wait_for(deleted.wait(), timeout=30)
    keeping.cancel()
    assert old != kept
    assert [one.id for one in await reviews.page(Filter(), limit=9)] == [kept]
    await reviews.close()


async def test_a_failing_database_is_tried_again() -> None:
    tried = asyncio.Event()

    class Failing:
        times = 0

        async def delete(self, _which: Filter, by: str) -> list[int]:
            self.times += 1
            if self.times == 2:
                tried.set()
            raise StoreUnavailable("gone")

    keeping = spawn(delete_expired(30, Failing(), every_s=0))  # type: ignore[arg-type]
    await asyncio.wait_for(tried.wait(), timeout=30)
    keeping.cancel()
