"""The metric shows when runs last ended with each status, also after the database failed."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import URL

from guard.errors import StoreUnavailable
from guard.store.runs import RunStatus, RunStore, StoredRun
from guard.tasks import spawn
from server.jobs.run_watch import watch_runs
from server.telemetry.metrics import REFINE_ENDED


def ended(status: str) -> float | None:
    return REGISTRY.get_sample_value("setback_refine_ended_timestamp_seconds", {"status": status})


class OnceFailing(RunStore):
    """Fails at the first query; sets an event after the second success."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.looks = 0
        self.looked = asyncio.Event()

    async def list(self, limit: int, before_id: int | None = None) -> list[StoredRun]:
        self.looks += 1
        if self.looks == 1:
            raise StoreUnavailable("gone")
        if self.looks == 3:
            self.looked.set()
        return await super().list(limit, before_id)


async def test_the_last_end_of_each_status_is_reported(database: URL) -> None:
    REFINE_ENDED.clear()
    runs = OnceFailing(database)
    last: dict[RunStatus, float] = {}
    statuses: tuple[RunStatus, ...] = ("failed", "rejected", "failed")
    for status in statuses:
        run = await runs.start(
            model="practice", model_revision="1", parent=None, seed=0, options={}
        )
        await runs.finish(run.id, status)
        finished = await runs.get(run.id)
        assert finished is not None
        assert finished.finished_at is not None
        last[status] = finished.finished_at.timestamp()
    await runs.start(model="practice", model_revision="1", parent=None, seed=0, options={})
    watching = spawn(watch_runs(runs, every_s=0))
    await asyncio.wait_for(runs.looked.wait(), timeout=30)
    watching.cancel()
    await asyncio.wait({watching})
    await runs.close()
    assert {status: ended(status) for status in last} == pytest.approx(last)
    assert ended("running") is None
    assert ended("promoted") is None
