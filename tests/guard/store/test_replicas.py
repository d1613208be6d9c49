"""What each process last reported is kept, and processes that fell silent are left out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import URL

from guard.store.replicas import Replica, ReplicaStore

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
FIRST = Replica(
    name="a:1",
    started_at=NOW - timedelta(hours=1),
    seen_at=NOW,
    ready=True,
    adapter=None,
    model="practice",
    model_revision="abc",
    policy_hash="123",
    version="0.1.0",
)


async def test_the_last_report_of_each_process_counts(database: URL) -> None:
    store = ReplicaStore(database)
    swapped = replace(FIRST, adapter=3, seen_at=NOW + timedelta(seconds=10))
    second = replace(FIRST, name="b:1", ready=False)
    for report in (second, FIRST, swapped):
        await store.report(report)
    assert await store.since(NOW) == [swapped, second]
    assert await store.since(NOW + timedelta(seconds=1)) == [swapped]
    await store.close()


async def test_a_process_that_was_silent_for_a_day_is_forgotten(database: URL) -> None:
    store = ReplicaStore(database)
    await store.report(FIRST)
    await store.report(replace(FIRST, name="b:1", seen_at=NOW + timedelta(hours=25)))
    assert [report.name for report in await store.since(NOW)] == ["b:1"]
    await store.close()
