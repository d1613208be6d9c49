"""The active adapter: loaded after verification, swapped during requests, unloaded afterwards."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm.sampling_params import RequestOutputKind

from guard.adapter_config import WEIGHTS
from guard.adapter_files import adapter_path
from guard.adapters import adapter_name
from guard.call import GuardCall
from guard.errors import AdapterConflict, AdapterRefused, AdapterUnknown, StoreUnavailable
from guard.prompts import CritiqueStyle
from guard.scripted import Script
from guard.tasks import spawn
from tests.adapters import write_adapter
from tests.scripted import Bench

MakeBench = Callable[..., Bench]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the bench's adapters."""
    return tmp_path / "adapters"


@pytest.fixture
def bench(make_bench: MakeBench, folder: Path) -> Bench:
    """A bench with five registered adapters, none active."""
    created: Bench = make_bench()
    created.registry.add(*(write_adapter(folder, version) for version in range(1, 6)))
    return created


async def run_pending_tasks() -> None:
    """Lets spawned tasks run to their end."""
    for _ in range(20):
        await asyncio.sleep(0)


async def activate(bench: Bench, version: int | None) -> None:
    bench.registry.way = [version, None]
    await bench.adapters.refresh()
    await run_pending_tasks()


def loaded(bench: Bench) -> list[str]:
    return [lora.lora_name for lora in bench.engine.loras.values()]


def asked_of(bench: Bench) -> set[str]:
    return {adapter_name(request.lora_request) for request in bench.engine.requests}


async def test_with_no_adapter_active_the_base_answers(bench: Bench) -> None:
    await bench.adapters.start()
    await bench.ask()
    assert asked_of(bench) == {"base"}
    assert (bench.adapters.active, bench.adapters.active_name) == (None, "base")
    assert bench.call.adapter == "base"
    assert bench.observed.active == [(None, False)]


async def test_the_active_adapter_drafts_and_judges(bench: Bench) -> None:
    bench.registry.way = [2, 1, None]
    await bench.adapters.start()
    bench.call.wants_moderation = True
    await bench.ask()
    assert asked_of(bench) == {"setback-2"}
    assert len(bench.engine.requests) == 5
    assert bench.call.adapter == "setback-2"
    assert bench.observed.active == [(2, False)]
    assert {adapter for _, adapter in bench.observed.verdicts} == {"setback-2"}


async def test_an_adapter_of_another_machine_is_copied_and_served(
    make_bench: MakeBench, folder: Path, tmp_path: Path
) -> None:
    bench = make_bench(adapters_url=f"file://{tmp_path}/shared")
    bench.registry.add(write_adapter(tmp_path / "shared", 2))
    await activate(bench, 2)
    assert bench.adapters.active_name == "setback-2"
    assert adapter_path(folder, 2).is_dir()


async def test_an_adapter_that_cannot_be_copied_is_refused_and_the_last_one_serves(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(adapters_url=f"file://{tmp_path}/shared")
    bench.registry.add(*(write_adapter(tmp_path / "shared", version) for version in (1, 2)))
    await activate(bench, 1)
    (adapter_path(tmp_path / "shared", 2) / WEIGHTS).unlink()
    await activate(bench, 2)
    assert bench.adapters.active_name == "setback-1"
    assert bench.observed.refused == [2]


async def test_each_version_has_a_name_a_path_and_an_id_of_its_own(
    bench: Bench, folder: Path
) -> None:
    identifiers = set()
    for version in (1, 2, 3):
        async with bench.adapters.of(version) as lora:
            assert lora is not None
            assert Path(lora.lora_path) == adapter_path(folder, version)
            identifiers |= {lora.lora_name, lora.lora_path, lora.lora_int_id}
    assert len(identifiers) == 9


async def test_a_flag_names_the_adapter_that_answered(make_bench: MakeBench, folder: Path) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.9))
    bench.registry.add(write_adapter(folder, 1))
    await activate(bench, 1)
    await bench.ask()
    assert [flag.adapter for flag in bench.store.flags] == ["setback-1"]


async def test_a_request_with_an_adapter_of_its_own_keeps_it(bench: Bench) -> None:
    await activate(bench, 1)
    async with bench.adapters.of(2) as own:
        prompt_ids = bench.chat_format.conversation([{"role": "user", "content": "Hello."}])
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        await bench.generate(prompt, options={"lora_request": own})
    assert asked_of(bench) == {"setback-2"}
    assert bench.call.adapter == "setback-2"


async def test_callers_cannot_raise_their_priority(bench: Bench) -> None:
    prompt_ids = bench.chat_format.conversation([{"role": "user", "content": "Hello."}])
    prompt = {"type": "token", "prompt_token_ids": prompt_ids}
    await bench.generate(prompt, options={"priority": -5})
    await bench.generate(prompt, options={"priority": 3})
    assert [request.priority for request in bench.engine.requests] == [0, 0, 3, 3]


async def test_a_swap_lets_running_requests_end_on_the_old_adapter(
    make_bench: MakeBench, folder: Path
) -> None:
    bench = make_bench(Script(answers=lambda prompt: ("word " * 20,), piece_tokens=1))
    bench.registry.add(*(write_adapter(folder, version) for version in (1, 2)))
    await activate(bench, 1)
    running = [asyncio.ensure_future(bench.ask(kind=RequestOutputKind.DELTA))]
    await asyncio.sleep(0)
    bench.call = GuardCall(route="")
    bench.registry.way = [2, 1, None]
    await bench.adapters.refresh()
    assert bench.adapters.active == 2
    assert loaded(bench) == ["setback-1", "setback-2"]
    running.append(asyncio.ensure_future(bench.ask(kind=RequestOutputKind.DELTA)))
    await asyncio.gather(*running)
    await run_pending_tasks()
    assert loaded(bench) == ["setback-2"]
    drafts, reads = (
        [
            adapter_name(request.lora_request)
            for request in bench.engine.requests
            if (request.params.logprob_token_ids is not None) == is_read
        ]
        for is_read in (False, True)
    )
    assert drafts == reads == ["setback-1", "setback-2"]
    assert bench.engine.reloads == 0
    assert bench.observed.active == [(1, True), (2, True)]


async def test_going_back_to_the_base_lets_the_adapter_go(bench: Bench) -> None:
    await activate(bench, 1)
    await activate(bench, None)
    await bench.ask()
    assert asked_of(bench) == {"base"}
    assert loaded(bench) == []


async def test_an_adapter_that_is_still_draining_can_become_active_again(bench: Bench) -> None:
    await activate(bench, 1)
    with bench.adapters.use():
        await activate(bench, 2)
        await activate(bench, 1)
        assert loaded(bench) == ["setback-1"]
    await run_pending_tasks()
    assert loaded(bench) == ["setback-1"]
    assert bench.engine.reloads == 0


async def test_a_hundred_swaps_leave_one_adapter_loaded(bench: Bench) -> None:
    for turn in range(100):
        await activate(bench, turn % 5 + 1)
        bench.call = GuardCall(route="")
        await bench.ask()
    assert loaded(bench) == ["setback-5"]
    assert bench.engine.reloads == 0


async def test_swaps_with_requests_at_every_moment_reload_nothing(bench: Bench) -> None:
    await activate(bench, 1)
    done = asyncio.Event()

    async def client() -> int:
        count = 0
        while not done.is_set():
            with bench.adapters.use() as lora:
                assert lora is not None
                for _ in range(count % 7):
                    await asyncio.sleep(0)
                    assert lora.lora_int_id in bench.engine.loras
            await asyncio.sleep(0)
            count += 1
        return count

    clients = [spawn(client()) for _ in range(8)]
    for turn in range(30):
        await activate(bench, turn % 5 + 1)
        assert len(bench.engine.loras) <= 3
    done.set()
    assert min(await asyncio.gather(*clients)) > 30
    await run_pending_tasks()
    assert loaded(bench) == ["setback-5"]


async def test_a_fourth_adapter_waits_for_a_slot(bench: Bench) -> None:
    await activate(bench, 1)
    with bench.adapters.use():
        await activate(bench, 2)
        with bench.adapters.use():
            await activate(bench, 3)
            bench.registry.way = [4, None]
            swap = spawn(bench.adapters.refresh())
            await run_pending_tasks()
            assert not swap.done()
            assert bench.adapters.active == 3
        await swap
    await run_pending_tasks()
    assert bench.adapters.active == 4
    assert loaded(bench) == ["setback-4"]


async def test_two_that_wait_for_the_same_adapter_load_it_once(bench: Bench) -> None:
    async def used() -> None:
        async with bench.adapters.of(4):
            await run_pending_tasks()

    async with bench.adapters.of(1), bench.adapters.of(2), bench.adapters.of(3):
        waiting = [spawn(used()) for _ in range(2)]
        await run_pending_tasks()
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    await bench.adapters.unload(4)
    assert "setback-4" not in loaded(bench)


async def test_a_candidate_stays_between_batches_until_it_is_unloaded(bench: Bench) -> None:
    await activate(bench, 1)
    for _ in range(2):
        async with bench.adapters.of(2) as lora:
            assert lora is not None
        await run_pending_tasks()
        assert loaded(bench) == ["setback-1", "setback-2"]
    await bench.adapters.unload(2)
    assert loaded(bench) == ["setback-1"]
    await bench.adapters.unload(2)


async def test_an_idle_candidate_makes_room(bench: Bench) -> None:
    await activate(bench, 1)
    for version in (2, 3, 4):
        async with bench.adapters.of(version):
            pass
    assert "setback-1" in loaded(bench)
    assert "setback-4" in loaded(bench)
    assert len(loaded(bench)) <= 3


async def test_an_adapter_unloaded_while_in_use_goes_with_its_last_user(bench: Bench) -> None:
    async with bench.adapters.of(2):
        await bench.adapters.unload(2)
        assert loaded(bench) == ["setback-2"]
    await run_pending_tasks()
    assert loaded(bench) == []


async def test_the_active_adapter_is_not_unloaded(bench: Bench) -> None:
    await activate(bench, 1)
    with pytest.raises(AdapterConflict, match="Adapter 1 is active"):
        await bench.adapters.unload(1)
    with pytest.raises(AdapterUnknown, match="no adapter 9"):
        await bench.adapters.unload(9)


def spoil(folder: Path, version: int) -> None:
    (adapter_path(folder, version) / WEIGHTS).write_bytes(b"other")


async def test_a_spoiled_adapter_is_refused_and_the_present_one_stays(
    bench: Bench, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await activate(bench, 1)
    spoil(folder, 2)
    with caplog.at_level(logging.ERROR, "vllm.setback"):
        await activate(bench, 2)
    assert "Adapter 2" in caplog.text
    assert "was altered" in caplog.text
    assert "Serving setback-1 instead" in caplog.text
    assert bench.adapters.active == 1
    assert loaded(bench) == ["setback-1"]
    assert bench.observed.refused == [2]
    await bench.adapters.refresh()
    assert bench.observed.refused == [2], "tried again at once"
    await activate(bench, 3)
    assert bench.adapters.active == 3


async def test_a_candidate_spoiled_after_it_was_loaded_does_not_become_active(
    bench: Bench, folder: Path
) -> None:
    async with bench.adapters.of(2):
        pass
    spoil(folder, 2)
    await activate(bench, 2)
    assert bench.adapters.active is None
    assert bench.observed.refused == [2]


async def test_a_repaired_adapter_is_loaded_later(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = adapter_path(folder, 2) / WEIGHTS
    whole = weights.read_bytes()
    spoil(folder, 2)
    await activate(bench, 2)
    weights.write_bytes(whole)
    monkeypatch.setattr("guard.adapters._RETRY_S", 0.0)
    await bench.adapters.refresh()
    assert bench.adapters.active == 2


async def test_at_start_up_the_last_good_adapter_is_served(bench: Bench, folder: Path) -> None:
    for version in (5, 4):
        spoil(folder, version)
    bench.registry.way = [5, 4, 2, 1, None]
    await bench.adapters.start()
    await bench.adapters.refresh()
    assert bench.adapters.active == 2
    assert bench.observed.refused == [5, 4]
    assert bench.observed.active == [(2, False)]


async def test_at_start_up_with_no_good_adapter_the_base_is_served(
    bench: Bench, folder: Path
) -> None:
    spoil(folder, 5)
    bench.registry.way = [5, None]
    await bench.adapters.start()
    assert bench.adapters.active is None
    assert loaded(bench) == []


async def test_an_adapter_that_the_engine_does_not_load_is_refused(
    make_bench: MakeBench, folder: Path
) -> None:
    bench = make_bench(Script(fail_lora=ValueError("unexpected modules")))
    bench.registry.add(write_adapter(folder, 1))
    await activate(bench, 1)
    assert bench.adapters.active is None
    with pytest.raises(AdapterRefused, match=r"Adapter 1 .*unexpected modules"):
        async with bench.adapters.of(1):
            pass


async def test_a_store_that_fails_meanwhile_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await activate(bench, 1)
    looked = asyncio.Event()

    async def fail() -> list[int | None]:
        looked.set()
        raise StoreUnavailable("gone")

    monkeypatch.setattr(bench.registry, "preferred", fail)
    with caplog.at_level(logging.WARNING, "vllm.setback"):
        watching = spawn(bench.adapters.watch(0.0))
        await looked.wait()
        await run_pending_tasks()
    assert not watching.done()
    watching.cancel()
    assert "store_unavailable: gone" in caplog.text
    await bench.ask()
    assert asked_of(bench) == {"setback-1"}


async def test_watching_follows_the_registry(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = asyncio.Event()
    monkeypatch.setattr(bench.observed, "adapter_active", lambda *_, **__: swapped.set())
    watching = spawn(bench.adapters.watch(0.0))
    bench.registry.way = [3, None]
    async with asyncio.timeout(10):
        await swapped.wait()
    watching.cancel()
    assert bench.adapters.active == 3


async def test_each_adapter_is_asked_for_verdicts_as_it_was_trained_to(
    make_bench: MakeBench, folder: Path
) -> None:
    bench = make_bench()
    bench.registry.add(
        write_adapter(folder, 1, critique=CritiqueStyle.LABEL), write_adapter(folder, 2)
    )
    prompts = {}
    for version in (None, 1, 2):
        await activate(bench, version)
        await bench.ask_in_call(GuardCall(route="/v1/chat/completions"))
        prompts[version] = bench.engine.log[-1][1]
    assert prompts[1].endswith("Harm:")
    assert "Is the answer above" not in prompts[1]
    assert "Is the answer above" in prompts[2]
    assert "Is the answer above" in prompts[None]


async def test_a_flag_names_the_prompts_of_its_verdict(make_bench: MakeBench, folder: Path) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.9))
    bench.registry.add(write_adapter(folder, 1, critique=CritiqueStyle.LABEL))
    for version in (None, 1):
        await activate(bench, version)
        await bench.ask_in_call(GuardCall(route="/v1/chat/completions"))
    assert [flag.prompt_version for flag in bench.store.flags] == ["2", "2-label"]
