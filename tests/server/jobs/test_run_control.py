"""Runs are started by a job of ours and cancelled wherever they run, over a real database. The job
is a small script that keeps a run's row as the refine job does."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from guard.errors import LeaseHeld, RunNotStarted, RunOver, RunUnknown
from guard.store.runs import StoredRun
from guard.tasks import spawn
from refine.schedule import LEASE
from tests.guard.store.test_runs import begin
from tests.server.face import Face, open_face

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
JOB = """
import asyncio, sys
from guard.store.url import parse_url
from guard.store.leases import Leases
from guard.store.runs import RunStore
from refine.cancel import run_unless_cancelled
from refine.errors import RunCancelled
from refine.schedule import leased

async def main(url, how):
    runs, leases = RunStore(url), Leases(url)
    async with leased(leases, 60):
        run = await runs.unfinished() or await runs.start(
            model="m", model_revision="1", parent=None, seed=0, options={}
        )
        await runs.set_stage(run.id, "train")
        if how == "work":
            try:
                await run_unless_cancelled(runs, run.id, asyncio.sleep(600))
            except RunCancelled as by:
                await runs.finish(run.id, "cancelled", reasons=[f"cancelled by {by}"])
        elif how == "end":
            await runs.finish(run.id, "too_few", reasons=["2 flags to learn from"])
    await runs.close()
    await leases.close()

if sys.argv[2] == "die":
    print("something", file=sys.stderr)
    print("", flush=True)
    sys.exit("no server at that address")
if sys.argv[2] == "babble":
    print("|" * 1_000_000, end="\\r", flush=True)
asyncio.run(main(parse_url(sys.argv[1]), sys.argv[2]))
"""


def job(database: URL, how: str) -> list[str]:
    """The command of a job that begins a run and then follows the instructions."""
    return [sys.executable, "-c", JOB, database.render_as_string(hide_password=False), how]


@asynccontextmanager
async def face_with(database: URL, *command: str) -> AsyncIterator[Face]:
    """Our routes with that job command; the job has ended when the block ends."""
    async with open_face(database, job=command, environment=ENVIRONMENT) as face:
        yield face
        # Their output is read to the end.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


async def until(face: Face, number: int, status: str) -> StoredRun:
    """Waits until the run has that status."""
    run = await face.runs.get(number)
    assert run is not None
    async for update in face.control.follow(run):
        run = update
    assert run.status == status
    return run


@pytest.mark.parametrize("how", ["begin", "end", "babble"])
async def test_a_started_run_is_returned_as_it_begins(database: URL, how: str) -> None:
    async with face_with(database, *job(database, how)) as face:
        earlier = await begin(face.runs)
        await face.runs.finish(earlier.id, "failed", error="long ago")
        run = await face.control.start("anna")
        assert run.id == 2
        if how == "end":
            await until(face, 2, "too_few")
        (entry,) = await face.audit.list(10)
        assert (entry.actor, entry.event, entry.subject) == ("anna", "run.started", "run 2")


async def test_a_run_that_a_killed_job_left_is_resumed(database: URL) -> None:
    async with face_with(database, *job(database, "begin")) as face:
        left = await begin(face.runs)
        run = await face.control.start("anna")
        assert (run.id, run.stage) == (left.id, "train")


async def test_while_a_job_runs_no_other_is_started(database: URL) -> None:
    async with face_with(database, *job(database, "begin")) as face:
        await face.leases.acquire(LEASE, "host-a pid 7", 60)
        with pytest.raises(LeaseHeld, match="host-a pid 7"):
            await face.control.start("anna")
        assert await face.runs.list(1) == []
        assert await face.audit.list(1) == []


async def test_of_two_started_at_once_one_is(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face:
        tries = (face.control.start(name) for name in ("anna", "ben"))
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["LeaseHeld", "StoredRun"]
        await face.control.cancel(1, "anna")
        await until(face, 1, "cancelled")


async def test_a_job_that_dies_before_it_has_a_run_reports_why(database: URL) -> None:
    async with face_with(database, *job(database, "die")) as face:
        with pytest.raises(RunNotStarted, match="ended early: no server at that address"):
            await face.control.start("anna")
        assert await face.audit.list(1) == []


async def test_a_job_without_output_is_reported_as_such(database: URL) -> None:
    async with face_with(database, "true") as face:
        with pytest.raises(RunNotStarted, match="it wrote nothing"):
            await face.control.start("anna")


async def test_a_job_without_a_run_in_time_is_ended(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.run_control._START_UP_S", 0.5)
    async with face_with(database, "sleep", "600") as face:
        with pytest.raises(RunNotStarted, match="had no run"):
            await face.control.start("anna")


async def test_a_run_at_work_ends_by_itself_once_cancelled(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face:
        run = await face.control.start("anna")
        cancelled = await face.control.cancel(run.id, "ben")
        assert (cancelled.status, cancelled.cancelled_by) == ("running", "ben")
        over = await until(face, run.id, "cancelled")
        assert over.reasons == ("cancelled by ben",)
        events = [entry.event for entry in await face.audit.list(10)]
        assert events == ["run.cancelled", "run.started"]
        with pytest.raises(RunOver, match="has ended: cancelled"):
            await face.control.cancel(run.id, "anna")


@pytest.mark.parametrize("active", [False, True])
async def test_a_run_without_a_job_is_cancelled_at_once(database: URL, active: bool) -> None:
    async with face_with(database, *job(database, "work")) as face:
        run = await begin(face.runs)
        await face.registry.register(version=run.id, parent=None, model_revision="1", sha256="a")
        if active:
            await face.registry.activate(run.id, by="run 1", reason="passed")
        cancelled = await face.control.cancel(run.id, "anna")
        assert (cancelled.status, cancelled.reasons) == ("cancelled", ("cancelled by anna",))
        adapter = await face.registry.get(run.id)
        assert adapter is not None
        # The active adapter stays active; only a rollback changes it.
        assert adapter.status == ("promoted" if active else "rejected")


async def test_an_unknown_run_cannot_be_cancelled(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face:
        with pytest.raises(RunUnknown):
            await face.control.cancel(7, "anna")


async def test_a_run_is_followed_whenever_it_changes_to_its_end(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face:
        run = await begin(face.runs)
        updates = []
        async for update in face.control.follow(run):
            updates.append((update.status, update.stage))
            if len(updates) == 1:
                await face.runs.set_stage(run.id, "gate")
            else:
                await face.runs.finish(run.id, "rejected", reasons=["worse"])
        assert updates == [("running", "collect"), ("running", "gate"), ("rejected", "gate")]


async def test_a_follower_that_leaves_breaks_nothing(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face:
        run = await begin(face.runs)
        following = [spawn(until(face, run.id, "failed")) for _ in range(20)]
        for turns, follower in enumerate(following[1:]):
            for _ in range(turns):
                await asyncio.sleep(0)
            follower.cancel()
        await face.runs.finish(run.id, "failed", error="no room")
        assert (await following[0]).error == "no room"
        await asyncio.wait(following)
