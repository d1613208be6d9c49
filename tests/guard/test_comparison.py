"""What is counted of the requests of a rollout, and the shadow's verdicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind

from guard.call import GuardCall, StreamMode
from guard.errors import CriticUnavailable, InputBlocked, StoreUnavailable
from guard.rollouts import is_shadowed, place
from guard.scripted import Gate, Script
from guard.store.rollouts import ArmCounts, RolloutCounts, ShadowCounts
from tests.adapters import write_adapter
from tests.guard.test_adapters import run_pending_tasks
from tests.scripted import BLOCK, Bench

SHARE = 0.5
HARMFUL = Script(harm=lambda prompt: 0.9)

MakeBench = Callable[..., Bench]


@pytest.fixture
def make(make_bench: MakeBench, tmp_path: Path) -> MakeBench:
    """Builds a bench on which adapter 1 is rolled out beside the base."""

    def build(*arguments: Any, **options: Any) -> Any:
        async def begun() -> Bench:
            bench = make_bench(*arguments, **options)
            bench.registry.add(write_adapter(tmp_path / "adapters", 1))
            await bench.adapters.start()
            bench.source.begin(1, SHARE)
            await bench.rollouts.refresh()
            return bench

        return begun()

    return build


def client_of(bench: Bench, arm: str) -> str:
    """A client that the new adapter answers, the old one, or the old one with a shadow."""
    rollout = bench.source.current
    assert rollout is not None
    for number in range(1000):
        client = f"user {number}"
        new, shadowed = place(rollout, client) < SHARE, is_shadowed(rollout, client)
        if arm == ("new" if new else "shadow" if shadowed else "old"):
            return client
    raise AssertionError("no such client")


async def ask(bench: Bench, arm: str, **options: Any) -> None:
    """Sends one request of a client of that arm, and waits for the shadow."""
    bench.call = GuardCall(route="/v1/chat/completions", client=client_of(bench, arm))
    try:
        async with bench.rollouts.pinned(bench.call):
            await bench.ask(**options)
    finally:
        await run_pending_tasks()


async def counted(bench: Bench) -> RolloutCounts:
    await bench.rollouts.refresh()
    return bench.source.stored


@pytest.mark.parametrize("arm", ["new", "old"])
@pytest.mark.parametrize("kind", [RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA])
async def test_answers_are_counted_for_their_adapter(
    make: MakeBench, arm: str, kind: RequestOutputKind
) -> None:
    bench = await make(stream=StreamMode.WINDOW)  # type: ignore[misc]
    for _ in range(3):
        await ask(bench, arm, kind=kind)
    counts = await counted(bench)
    here = getattr(counts, arm)
    assert (here.requests, here.answers, here.timed) == (3, 3, 3)
    assert (here.flagged, here.withheld, here.errors) == (0, 0, 0)
    assert 0 < here.guard_s < 60
    assert 0 < here.token_s2 <= here.token_s**2
    assert (counts.old if arm == "new" else counts.new) == ArmCounts()


@pytest.mark.parametrize("kind", [RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA])
async def test_flagged_and_withheld_answers_are_counted(
    make: MakeBench, kind: RequestOutputKind
) -> None:
    bench = await make(HARMFUL, policy=BLOCK, stream=StreamMode.WINDOW)  # type: ignore[misc]
    await ask(bench, "new", kind=kind)
    here = (await counted(bench)).new
    assert (here.requests, here.answers, here.flagged, here.withheld) == (1, 1, 1, 1)


async def test_flagged_answers_may_pass(make: MakeBench) -> None:
    policy = BLOCK.replace("block", "annotate")
    bench = await make(HARMFUL, policy=policy)  # type: ignore[misc]
    await ask(bench, "new")
    here = (await counted(bench)).new
    assert (here.answers, here.flagged, here.withheld) == (1, 1, 0)


async def test_refused_input_counts_as_a_withheld_answer(make: MakeBench) -> None:
    bench = await make(HARMFUL, policy=BLOCK, block_input=True)  # type: ignore[misc]
    with pytest.raises(InputBlocked):
        await ask(bench, "new")
    here = (await counted(bench)).new
    assert (here.requests, here.flagged, here.withheld, here.errors) == (1, 1, 1, 0)


@pytest.mark.parametrize("fail_open", [True, False])
async def test_failed_critiques_are_counted(make: MakeBench, fail_open: bool) -> None:
    bench = await make(Script(fail_critique=RuntimeError()), fail_open=fail_open)  # type: ignore[misc]
    if fail_open:
        await ask(bench, "new")
    else:
        with pytest.raises(CriticUnavailable):
            await ask(bench, "new")
    here = (await counted(bench)).new
    assert (here.requests, here.errors, here.answers) == (1, 1, int(fail_open))


@pytest.mark.parametrize("fail_open", [True, False])
async def test_flags_that_cannot_be_stored_are_counted(make: MakeBench, fail_open: bool) -> None:
    bench = await make(HARMFUL, policy=BLOCK, fail_open=fail_open)  # type: ignore[misc]
    bench.store.broken = True
    if fail_open:
        await ask(bench, "old")
    else:
        with pytest.raises(StoreUnavailable):
            await ask(bench, "old")
    here = (await counted(bench)).old
    assert (here.requests, here.errors) == (1, 1)


async def test_requests_that_name_an_adapter_are_not_counted(make: MakeBench) -> None:
    bench = await make()  # type: ignore[misc]
    bench.registry.add(write_adapter(Path(bench.adapters._limits.folder.path), 2))
    async with bench.adapters.of(2) as own:
        prompt_ids = bench.chat_format.conversation([{"role": "user", "content": "Hello."}])
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        await bench.generate(prompt, options={"lora_request": own})
    assert await counted(bench) == RolloutCounts()


async def test_without_a_rollout_nothing_is_counted(make_bench: MakeBench) -> None:
    bench: Bench = make_bench()
    await bench.ask()
    assert await counted(bench) == RolloutCounts()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (0.9, 0.9, ShadowCounts(1, 1, 0, 0)),
        (0.1, 0.9, ShadowCounts(1, 0, 1, 0)),
        (0.9, 0.1, ShadowCounts(1, 0, 0, 1)),
        (0.1, 0.1, ShadowCounts(1, 0, 0, 0)),
    ],
)
async def test_the_shadow_judges_the_same_answer_and_acts_on_nothing(
    make: MakeBench, old: float, new: float, told: ShadowCounts
) -> None:
    script = Script()
    bench = await make(script, policy=BLOCK)  # type: ignore[misc]
    # The script sees prompts, not adapters: the last request in the log is the one that it reads.
    script.harm = lambda _: new if bench.engine.requests[-1].lora_request else old
    await ask(bench, "shadow")
    drafts = [text for kind, text in bench.engine.log if kind == "draft"]
    assert len(drafts) == 1
    assert (await counted(bench)).shadow == told
    assert (await counted(bench)).new == ArmCounts()
    assert len(bench.store.flags) == (old > 0.5)
    assert bench.engine.requests[-1].priority == 1


async def test_the_shadow_waits_for_the_release(make: MakeBench) -> None:
    gate = Gate()
    script = Script()
    bench = await make(script)  # type: ignore[misc]
    bench.call = GuardCall(route="", client=client_of(bench, "shadow"))
    async with bench.rollouts.pinned(bench.call):
        answer = await bench.ask()
        assert answer[-1].finished
        script.gate = gate
        reads = len(bench.engine.requests)
        await run_pending_tasks()
    assert len(bench.engine.requests) > reads
    gate.opened.set()
    await run_pending_tasks()
    assert (await counted(bench)).shadow.judged == 1


async def test_only_shadowed_clients_have_a_shadow(make: MakeBench) -> None:
    bench = await make()  # type: ignore[misc]
    await ask(bench, "old")
    assert all(request.lora_request is None for request in bench.engine.requests)
    await ask(bench, "new")
    assert (await counted(bench)).shadow == ShadowCounts()


async def test_a_shadow_that_fails_is_not_counted(make: MakeBench) -> None:
    script = Script()
    bench = await make(script)  # type: ignore[misc]
    bench.call = GuardCall(route="", client=client_of(bench, "shadow"))
    async with bench.rollouts.pinned(bench.call):
        await bench.ask()
        script.fail_critique = RuntimeError()
    await run_pending_tasks()
    counts = await counted(bench)
    assert counts.shadow == ShadowCounts()
    assert (counts.old.errors, counts.new.errors) == (0, 0)


async def test_few_shadows_run_at_once(make: MakeBench) -> None:
    script = Script()
    bench = await make(script)  # type: ignore[misc]
    client, gate = client_of(bench, "shadow"), Gate()
    for _ in range(7):
        script.gate = None
        bench.call = GuardCall(route="", client=client)
        async with bench.rollouts.pinned(bench.call):
            await bench.ask()
        script.gate = gate
        await run_pending_tasks()
    gate.opened.set()
    await run_pending_tasks()
    counts = await counted(bench)
    assert (counts.old.answers, counts.shadow.judged) == (7, 4)
