"""Who is answered with which adapter in a rollout, and that the new one is loaded meanwhile."""

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.call import GuardCall
from guard.errors import StoreUnavailable
from guard.rollouts import is_shadowed, place
from guard.store.rollouts import ArmCounts, RolloutCounts
from guard.tasks import spawn
from tests.adapters import MemoryRollouts, write_adapter
from tests.guard.test_adapters import loaded, run_pending_tasks, spoil
from tests.scripted import Bench

CLIENTS = [f"user {number}" for number in range(4000)]


@pytest.fixture
async def bench(make_bench: Callable[..., Bench], tmp_path: Path) -> Bench:
    """A bench with three registered adapters, of which 1 is active."""
    created: Bench = make_bench()
    created.registry.add(*(write_adapter(tmp_path / "adapters", version) for version in (1, 2, 3)))
    created.registry.way = [1, None]
    await created.adapters.start()
    return created


async def begin(bench: Bench, share: float = 0.5) -> None:
    bench.source.begin(2, share, compared_with=1)
    await bench.rollouts.refresh()


async def finish(bench: Bench, active: int = 1) -> None:
    """Ends the rollout; `active` is in force then."""
    bench.source.current = None
    bench.registry.way = [active, 1, None]
    await bench.rollouts.refresh()
    await run_pending_tasks()


async def version_of(bench: Bench, client: str | None) -> int | None:
    call = GuardCall(route="", client=client)
    async with bench.rollouts.pinned(call):
        return call.version


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_share_of_clients_gets_the_new_adapter(share: float) -> None:
    rollout = MemoryRollouts().begin(2, share)
    new = sum(place(rollout, client) < share for client in CLIENTS)
    shadowed = sum(is_shadowed(rollout, client) for client in CLIENTS)
    for count, expected in ((new, share), (shadowed, share * (1 - share))):
        error = math.sqrt(len(CLIENTS) * expected * (1 - expected))
        assert abs(count - len(CLIENTS) * expected) < 4 * error
    assert not any(
        is_shadowed(rollout, client) for client in CLIENTS if place(rollout, client) < share
    )


def test_a_client_has_the_same_place_in_every_process() -> None:
    rollout = MemoryRollouts().begin(2, 0.5)
    assert place(rollout, "ada") == pytest.approx(0.013701, abs=1e-6)
    assert 0 <= place(rollout, "\ud800") < 1


def test_each_rollout_draws_anew() -> None:
    first, second = (MemoryRollouts().begin(2, 0.5, number=number) for number in (1, 2))
    both = sum(place(first, c) < 0.5 and place(second, c) < 0.5 for c in CLIENTS)
    assert abs(both - len(CLIENTS) / 4) < 4 * math.sqrt(len(CLIENTS) * 3 / 16)


async def test_a_client_keeps_its_adapter(bench: Bench) -> None:
    await begin(bench)
    first = {client: await version_of(bench, client) for client in CLIENTS[:40]}
    assert set(first.values()) == {1, 2}
    for client, version in first.items():
        assert await version_of(bench, client) == version
    assert await version_of(bench, None) == 1


async def test_a_call_is_answered_and_judged_with_its_adapter(bench: Bench) -> None:
    await begin(bench)
    client = next(c for c in CLIENTS if place(bench.source.current, c) < 0.5)  # type: ignore[arg-type]
    bench.call.client = client
    async with bench.rollouts.pinned(bench.call):
        await finish(bench)
        await bench.ask()
    assert {r.lora_request.lora_name for r in bench.engine.requests if r.lora_request} == {
        "setback-2"
    }
    await run_pending_tasks()
    assert bench.call.adapter == "setback-2"
    assert loaded(bench) == ["setback-1"], "the last call that uses it lets it go"


async def test_the_new_adapter_stays_loaded_until_the_end(bench: Bench) -> None:
    await begin(bench)
    assert loaded(bench) == ["setback-1", "setback-2"]
    # Others that need room do not push it out.
    for _ in range(2):
        async with bench.adapters.of(3):
            await run_pending_tasks()
            assert "setback-2" in loaded(bench)
    await bench.rollouts.refresh()
    await bench.adapters.unload(3)
    await finish(bench)
    assert loaded(bench) == ["setback-1"]
    assert await version_of(bench, CLIENTS[0]) == 1
    assert bench.engine.reloads == 0


async def test_the_adapter_of_a_completed_rollout_is_not_loaded_again(bench: Bench) -> None:
    await begin(bench)
    await finish(bench, active=2)
    assert bench.adapters.active == 2
    assert loaded(bench) == ["setback-2"]
    assert {await version_of(bench, client) for client in CLIENTS[:20]} == {2}


async def test_an_adapter_that_was_active_before_can_be_rolled_out(bench: Bench) -> None:
    bench.registry.way = [3, 1, None]
    with bench.adapters.use():
        await bench.adapters.refresh()
        bench.source.begin(1, 0.5, compared_with=3)
        await bench.rollouts.refresh()
    await run_pending_tasks()
    assert set(loaded(bench)) == {"setback-1", "setback-3"}
    await finish(bench, active=3)
    assert loaded(bench) == ["setback-3"]


async def test_another_rollout_at_once_replaces_it(bench: Bench) -> None:
    await begin(bench)
    bench.source.begin(3, 0.5, compared_with=1, number=2)
    await bench.rollouts.refresh()
    await run_pending_tasks()
    assert set(loaded(bench)) == {"setback-1", "setback-3"}
    assert {await version_of(bench, client) for client in CLIENTS[:40]} == {1, 3}


async def test_with_another_adapter_in_force_all_get_that(bench: Bench) -> None:
    await begin(bench)
    bench.registry.way = [3, 1, None]
    await bench.adapters.refresh()
    assert {await version_of(bench, client) for client in CLIENTS[:40]} == {3}


async def test_an_adapter_that_cannot_be_loaded_ends_the_rollout(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tmp_path / "adapters", 2)
    with caplog.at_level(logging.ERROR, "vllm.setback"):
        await begin(bench)
    assert "was altered" in caplog.text
    assert "Serving setback-1 alone" in caplog.text
    ((number, status, outcome),) = bench.source.ended
    assert (number, status) == (1, "reverted")
    assert "a server could not load it: Adapter 2" in outcome
    assert {await version_of(bench, client) for client in CLIENTS[:40]} == {1}


async def test_without_a_free_slot_the_rollout_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("guard.rollouts._LOADING_S", 0.0)
    await begin(bench)
    ((_, status, outcome),) = bench.source.ended
    assert status == "reverted"
    assert "no slot was free" in outcome


async def test_counts_are_kept_while_the_database_fails(bench: Bench) -> None:
    counts = RolloutCounts(new=ArmCounts(requests=1, answers=1, timed=1, guard_s=0.1))
    bench.rollouts.count(1, counts)
    bench.source.broken = True
    with pytest.raises(StoreUnavailable):
        await bench.rollouts.refresh()
    bench.rollouts.count(1, counts)
    bench.source.broken = False
    for _ in range(2):
        await bench.rollouts.refresh()
    assert bench.source.stored == counts + counts


async def test_counts_during_a_flush_are_stored_with_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, add = RolloutCounts(old=ArmCounts(requests=1)), bench.source.add

    async def add_and_count(number: int, added: RolloutCounts) -> None:
        monkeypatch.setattr(bench.source, "add", add)
        bench.rollouts.count(1, counts)
        await add(number, added)

    monkeypatch.setattr(bench.source, "add", add_and_count)
    bench.rollouts.count(1, counts)
    await bench.rollouts.refresh()
    assert bench.source.stored == counts
    await bench.rollouts.refresh()
    assert bench.source.stored == counts + counts


async def test_watching_follows_the_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = asyncio.Event()

    async def add(_number: int, _counts: RolloutCounts) -> None:
        stored.set()

    monkeypatch.setattr(bench.source, "add", add)
    bench.rollouts.count(1, RolloutCounts(old=ArmCounts(requests=1)))
    watching = spawn(bench.rollouts.watch(0.0))
    async with asyncio.timeout(10):
        await stored.wait()
    watching.cancel()
