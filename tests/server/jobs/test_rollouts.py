"""The job that ends rollouts: completed, reverted, out of time, once among several processes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import URL

from guard.errors import StoreUnavailable
from guard.store.adapters import AdapterStore
from guard.store.leases import Leases
from guard.store.rollouts import ArmCounts, RolloutCounts, RolloutStore, StoredRollout
from guard.store.runs import RunStore
from guard.tasks import spawn
from server.jobs.rollout_decision import Margins
from server.jobs.rollouts import RolloutDecisions
from tests.guard.store.test_adapters import make

GOOD = ArmCounts(requests=1000, answers=1000, flagged=50, timed=1000, token_s=20.0, token_s2=0.5)
WORSE = replace(GOOD, flagged=400)
UNCLEAR = replace(GOOD, flagged=100)


@pytest.fixture
async def job(database: URL, adapters: AdapterStore) -> AsyncIterator[RolloutDecisions]:
    """Adapters 1, which is active, and 2, 3."""
    runs, rollouts, leases = RunStore(database), RolloutStore(database), Leases(database)
    for _ in range(3):
        await make(runs, adapters)
    await adapters.activate(1, by="ada", reason="")
    yield RolloutDecisions(rollouts, adapters, leases, Margins())
    for store in (runs, rollouts, leases):
        await store.close()


async def begin(job: RolloutDecisions, new: ArmCounts, old: ArmCounts = GOOD) -> int:
    number = (await job.rollouts.start(2, share=0.5, by="ada", reason="")).id
    await job.rollouts.add(number, RolloutCounts(new, old))
    return number


async def newest(job: RolloutDecisions) -> StoredRollout:
    (rollout,) = await job.rollouts.list(1)
    return rollout


async def test_without_a_rollout_nothing_happens(job: RolloutDecisions) -> None:
    await job.step()
    assert await job.rollouts.list(1) == []


async def test_what_is_not_worse_is_completed(job: RolloutDecisions) -> None:
    await begin(job, GOOD)
    await job.step()
    assert (await newest(job)).status == "completed"
    assert await job.adapters.active() == 2
    (activation, *_) = await job.adapters.history()
    assert activation.by == "rollout 1"
    assert activation.reason.startswith("not worse; errors: 0.0% -> 0.0%")


async def test_what_is_worse_is_reverted(job: RolloutDecisions) -> None:
    await begin(job, WORSE)
    await job.step()
    ended = await newest(job)
    assert ended.status == "reverted"
    assert ended.outcome.startswith("worse; flagged: 5.0% -> 40.0%")
    assert await job.adapters.active() == 1


async def test_what_is_unclear_goes_on_until_the_next_look(job: RolloutDecisions) -> None:
    number = await begin(job, UNCLEAR)
    await job.step()
    assert ((await newest(job)).status, (await newest(job)).looks) == ("running", 3)
    # Not enough for another look: however it stands, nothing is decided.
    await job.rollouts.add(number, RolloutCounts(ArmCounts(answers=500, flagged=500)))
    await job.step()
    assert (await newest(job)).status == "running"
    await job.rollouts.add(number, RolloutCounts(ArmCounts(answers=500, flagged=500), GOOD))
    await job.step()
    assert ((await newest(job)).status, (await newest(job)).looks) == ("reverted", 4)


async def test_too_few_answers_decide_nothing(job: RolloutDecisions) -> None:
    await begin(job, replace(WORSE, answers=199))
    await job.step()
    assert ((await newest(job)).status, (await newest(job)).looks) == ("running", 0)


async def test_without_a_decision_in_time_it_goes_back(job: RolloutDecisions) -> None:
    await begin(job, UNCLEAR)
    await replace(job, margins=Margins(hours=1e-9)).step()
    ended = await newest(job)
    assert (ended.status, ended.outcome) == ("reverted", "no decision within 1e-09 hours")


async def test_it_goes_back_when_another_adapter_came_into_force_meanwhile(
    job: RolloutDecisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(job, GOOD)

    async def active() -> int:
        return 3

    monkeypatch.setattr(job.adapters, "active", active)
    await job.step()
    ended = await newest(job)
    assert (ended.status, ended.outcome) == ("reverted", "another adapter came into force")


async def test_of_several_processes_one_decides(job: RolloutDecisions) -> None:
    await begin(job, GOOD)
    token = await job.leases.acquire("rollout", "another", 60)
    await job.step()
    assert (await newest(job)).status == "running"
    await job.leases.release("rollout", token)
    await asyncio.gather(*(job.step() for _ in range(3)))
    assert (await newest(job)).status == "completed"
    assert len(await job.adapters.history(version=2)) == 1


async def test_it_goes_on_after_failures(
    job: RolloutDecisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, looked = iter([StoreUnavailable("gone"), None]), asyncio.Event()

    async def running() -> None:
        failure = next(failures, None)
        if failure is not None:
            raise failure
        looked.set()

    monkeypatch.setattr(job.rollouts, "running", running)
    running_job = spawn(job.run(every_s=0))
    async with asyncio.timeout(10):
        await looked.wait()
    running_job.cancel()
    await asyncio.wait({running_job})
