"""Rollouts in the database: one at a time, their counts, and that an activation ends them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from guard.errors import AdapterConflict, AdapterUnknown
from guard.store.adapters import AdapterStore
from guard.store.audit import AuditStore
from guard.store.rollouts import (
    ArmCounts,
    RolloutCounts,
    RolloutStore,
    ShadowCounts,
    parse_share,
)
from guard.store.runs import RunStore
from tests.guard.store.test_adapters import make


@pytest.fixture
async def runs(database: URL) -> AsyncIterator[RunStore]:
    store = RunStore(database)
    yield store
    await store.close()


@pytest.fixture
async def rollouts(
    database: URL, runs: RunStore, adapters: AdapterStore
) -> AsyncIterator[RolloutStore]:
    """Adapters 1, 2 and 3, of which 1 is active."""
    for _ in range(3):
        await make(runs, adapters)
    await adapters.activate(1, by="ada", reason="")
    store = RolloutStore(database)
    yield store
    await store.close()


async def events(database: URL) -> list[tuple[str, str, str]]:
    audit = AuditStore(database)
    entries = await audit.list(20)
    await audit.close()
    return [(entry.actor, entry.event, entry.subject) for entry in reversed(entries)]


async def test_a_rollout_is_compared_with_the_active_adapter_and_audited(
    rollouts: RolloutStore, database: URL
) -> None:
    assert await rollouts.running() is None
    started = await rollouts.start(2, share=0.05, by="ada", reason="careful")
    assert (started.version, started.compared_with, started.share) == (2, 1, 0.05)
    assert (started.status, started.outcome, started.finished_at) == ("running", "", None)
    assert await rollouts.running() == started
    assert (await events(database))[-1] == ("ada", "rollout.started", "rollout 1")


async def test_what_cannot_be_rolled_out_is_refused(
    rollouts: RolloutStore, adapters: AdapterStore
) -> None:
    await adapters.set_status(3, "rejected")
    for version, kind, message in (
        (9, AdapterUnknown, "no adapter 9"),
        (3, AdapterConflict, "Adapter 3 was rejected"),
        (1, AdapterConflict, "Adapter 1 is active already"),
    ):
        with pytest.raises(kind, match=message):
            await rollouts.start(version, share=0.5, by="ada", reason="")
    await rollouts.start(2, share=0.5, by="ada", reason="")
    with pytest.raises(AdapterConflict, match=r"A rollout is running; .*rollout stop"):
        await rollouts.start(2, share=0.5, by="ada", reason="")


async def test_of_two_that_start_at_once_one_runs(rollouts: RolloutStore) -> None:
    starting = [rollouts.start(v, share=0.5, by="ada", reason="") for v in (2, 3)]
    ended = await asyncio.gather(*starting, return_exceptions=True)
    assert sum(isinstance(one, AdapterConflict) for one in ended) == 1, ended
    assert len(await rollouts.list(5)) == 1


async def test_a_completed_one_activates_its_adapter(
    rollouts: RolloutStore, adapters: AdapterStore, database: URL
) -> None:
    started = await rollouts.start(2, share=0.5, by="ada", reason="")
    assert await rollouts.end(started.id, "completed", by="rollout 1", outcome="not worse")
    assert await adapters.preferred() == [2, 1, None]
    (activation, *_) = await adapters.history()
    assert (activation.by, activation.reason) == ("rollout 1", "not worse")
    (ended,) = await rollouts.list(5)
    assert (ended.status, ended.outcome) == ("completed", "not worse")
    assert ended.finished_at is not None
    assert [event for _, event, _ in (await events(database))[-2:]] == [
        "rollout.completed",
        "adapter.activated",
    ]
    assert not await rollouts.end(started.id, "reverted", by="x", outcome="too late")


async def test_a_reverted_one_changes_nothing(
    rollouts: RolloutStore, adapters: AdapterStore
) -> None:
    started = await rollouts.start(2, share=0.5, by="ada", reason="")
    assert await rollouts.end(started.id, "reverted", by="rollout 1", outcome="worse")
    assert await adapters.active() == 1
    again = await rollouts.start(2, share=0.1, by="ada", reason="")
    assert [one.id for one in await rollouts.list(5)] == [again.id, started.id]
    assert [one.id for one in await rollouts.list(5, before_id=again.id)] == [started.id]


@pytest.mark.parametrize("change", ["activate", "rollback", "reject", "stop"])
async def test_what_is_done_by_hand_stops_it(
    rollouts: RolloutStore, adapters: AdapterStore, change: str
) -> None:
    started = await rollouts.start(2, share=0.5, by="ada", reason="")
    if change == "activate":
        await adapters.activate(3, by="eve", reason="")
    elif change == "rollback":
        await adapters.rollback(by="eve", reason="")
    elif change == "reject":
        await adapters.set_status(2, "rejected")
    else:
        await rollouts.stop(by="eve", reason="why")
    (ended,) = await rollouts.list(5)
    assert (ended.id, ended.status) == (started.id, "stopped")
    assert (
        ended.outcome
        == {
            "activate": "adapter 3 was put in force by eve",
            "rollback": "the base was put in force by eve",
            "reject": "adapter 2 was rejected",
            "stop": "stopped by eve: why",
        }[change]
    )
    with pytest.raises(AdapterConflict, match="No rollout is running"):
        await rollouts.stop(by="eve", reason="")


async def test_rejecting_another_adapter_leaves_it_running(
    rollouts: RolloutStore, adapters: AdapterStore
) -> None:
    await rollouts.start(2, share=0.5, by="ada", reason="")
    await adapters.set_status(3, "rejected")
    assert await rollouts.running() is not None


async def test_an_activation_that_fails_does_not_stop_it(
    rollouts: RolloutStore, adapters: AdapterStore
) -> None:
    await rollouts.start(2, share=0.5, by="ada", reason="")
    with pytest.raises(AdapterUnknown):
        await adapters.activate(9, by="eve", reason="")
    assert await rollouts.running() is not None


async def test_counts_of_all_processes_add_up(rollouts: RolloutStore) -> None:
    number = (await rollouts.start(2, share=0.5, by="ada", reason="")).id
    first = RolloutCounts(
        ArmCounts(4, 3, 2, 1, 1, 3, 0.5, 0.25, 1.5, 2.25),
        ArmCounts(requests=7),
        ShadowCounts(3, 1, 1, 0),
    )
    assert (await rollouts.counts([number]))[number] == RolloutCounts()
    await asyncio.gather(*(rollouts.add(number, first) for _ in range(3)))
    await rollouts.add(number, RolloutCounts(shadow=ShadowCounts(judged=1)))
    counts = (await rollouts.counts([number]))[number]
    assert counts == first + first + first + RolloutCounts(shadow=ShadowCounts(judged=1))
    assert counts - counts == RolloutCounts()


async def test_each_look_is_taken_once(rollouts: RolloutStore) -> None:
    number = (await rollouts.start(2, share=0.5, by="ada", reason="")).id
    looks = await asyncio.gather(*(rollouts.look(number, 1) for _ in range(3)))
    assert sorted(looks) == [False, False, True]
    assert await rollouts.look(number, 3)
    assert not await rollouts.look(number, 2)
    await rollouts.stop(by="ada", reason="")
    assert not await rollouts.look(number, 4)


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0.05", 0.05), (0.5, 0.5), (" 50 %", 0.5)]
)
def test_a_share_is_a_percentage_or_a_number(text: object, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["0", "1", "100%", "5", "-5%", "five", "", "nan", "inf", None, True]
)
def test_what_is_no_share_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="such as 5% or 0.05"):
        parse_share(text)
