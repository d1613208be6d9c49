"""The input is judged while the answer is generated: a pass costs no time, a flag ends it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind

from guard.call import StreamMode
from guard.criteria import Place
from guard.errors import CriticUnavailable, InputBlocked, StoreUnavailable
from guard.policy import Action
from guard.scripted import Gate, Script
from guard.tasks import spawn
from tests.guard.test_release import stream
from tests.scripted import Bench

MakeBench = Callable[..., Bench]

DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
ANSWER = "Give it a little water each morning and let it stand in the shade."
WAYS = [(FINAL, StreamMode.BUFFER), *((DELTA, mode) for mode in StreamMode)]


def asks_for_harm(prompt: str) -> float:
    """Only a free-standing text, which is the input, is harmful, and only if it says so."""
    return 0.9 if 'Text:\n"""\nTell me the forbidden way.' in prompt else 0.1


def script(**changes: Any) -> Script:
    return replace(Script(answers=lambda prompt: (ANSWER,), harm=asks_for_harm), **changes)


async def ask(bench: Bench, kind: RequestOutputKind, asked: str) -> str:
    bench.call.messages = [{"role": "user", "content": asked}]
    bench.call.open_turn = asked
    outputs = await bench.ask(asked, kind)
    return "".join(o.text for out in outputs for o in out.outputs)


HARMFUL, FINE = "Tell me the forbidden way.", "Tell me of ferns."


@pytest.mark.parametrize(("kind", "stream"), WAYS)
async def test_a_flagged_request_ends_generation_before_it_is_done(
    make_bench: MakeBench, kind: RequestOutputKind, stream: StreamMode
) -> None:
    bench = make_bench(script(draft_gate=Gate()), block_input=True, stream=stream)
    # The draft's end is never let through, so this would not return if it waited for it.
    with pytest.raises(InputBlocked):
        await ask(bench, kind, HARMFUL)
    assert bench.engine.log[-1] == ("closed", "req-1")
    assert isinstance(bench.call.error, InputBlocked)
    assert bench.observed.blocked_inputs == 1
    (flag,) = bench.store.flags
    assert (flag.place, flag.action, flag.answer) == (Place.INPUT, Action.BLOCK, "")
    assert flag.messages == [{"role": "user", "content": HARMFUL}]
    assert flag.categories == ("violence",)
    assert bench.observed.flag_places == [Place.INPUT]
    assert bench.observed.actions == [], "no answer was withheld"


async def test_a_policy_in_shadow_refuses_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(script(), block_input=True)
    bench.call.policy = replace(bench.policy, shadow=True)
    assert await ask(bench, FINAL, HARMFUL) == ANSWER
    (flag,) = bench.store.flags
    assert (flag.place, flag.action) == (Place.INPUT, Action.PASS)
    bench.call.input_ruling, bench.call.block_input = None, True
    with pytest.raises(InputBlocked):
        await ask(bench, FINAL, HARMFUL)


@pytest.mark.parametrize(("kind", "stream"), WAYS)
async def test_the_input_is_judged_during_generation_and_then_released(
    make_bench: MakeBench, kind: RequestOutputKind, stream: StreamMode
) -> None:
    reads, draft = Gate(), Gate()
    bench = make_bench(script(gate=reads, draft_gate=draft), block_input=True, stream=stream)
    asking = spawn(ask(bench, kind, FINE))
    # Both are in flight at once: neither gate is open.
    await reads.arrived.wait()
    await draft.arrived.wait()
    draft.opened.set()
    assert not bench.call.has_outcome
    reads.opened.set()
    assert await asking == ANSWER
    assert bench.call.input_ruling is not None


@pytest.mark.parametrize("mode", [StreamMode.WINDOW, StreamMode.ASYNC])
async def test_a_stream_flows_once_its_request_passed(
    make_bench: MakeBench, mode: StreamMode
) -> None:
    draft = Gate()
    bench = make_bench(script(draft_gate=draft, piece_tokens=1), block_input=True, stream=mode)
    bench.call.messages = [{"role": "user", "content": FINE}]
    bench.call.open_turn = FINE
    outputs = stream(bench)
    # The answer's end is still held, so what comes is its beginning.
    begun = (await anext(outputs)).outputs[0].text
    assert bench.call.has_outcome
    draft.opened.set()
    rest = [out.outputs[0].text async for out in outputs]
    assert rest
    assert begun + "".join(rest) == ANSWER


async def test_nothing_flows_before_the_verdict(make_bench: MakeBench) -> None:
    reads = Gate()
    bench = make_bench(script(gate=reads), block_input=True, stream=StreamMode.ASYNC)
    asking = spawn(ask(bench, DELTA, HARMFUL))
    await reads.arrived.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not bench.call.has_outcome
    reads.opened.set()
    with pytest.raises(InputBlocked):
        await asking
    assert bench.call.has_outcome


async def test_by_default_requests_are_not_judged(make_bench: MakeBench) -> None:
    bench = make_bench(script())
    assert await ask(bench, FINAL, HARMFUL) == ANSWER
    assert bench.call.input_ruling is None


async def test_the_open_turn_is_judged(make_bench: MakeBench) -> None:
    bench = make_bench(script(), block_input=True)
    bench.call.messages = [{"role": "user", "content": "Explain the above."}]
    bench.call.open_turn = HARMFUL
    with pytest.raises(InputBlocked):
        await bench.ask(FINE)


async def test_where_messages_are_unknown_the_prompt_is_judged(make_bench: MakeBench) -> None:
    bench = make_bench(script(), block_input=True)
    token_ids = bench.engine.tokenizer.encode(HARMFUL)
    with pytest.raises(InputBlocked):
        await bench.generate({"type": "token", "prompt_token_ids": token_ids})


async def test_a_call_that_generates_often_is_judged_once(make_bench: MakeBench) -> None:
    bench = make_bench(script(), block_input=True)
    for _ in range(3):
        await ask(bench, FINAL, FINE)
    assert sum("Text:" in text for _, text in bench.engine.log) == 1


@pytest.mark.parametrize(("action", "kept"), [("block", Action.ANNOTATE), ("pass", Action.PASS)])
async def test_a_flagged_request_that_is_answered_is_stored_as_such(
    make_bench: MakeBench, action: str, kept: Action
) -> None:
    bench = make_bench(script(), policy=f'[default]\naction = "{action}"\n')
    bench.call.wants_moderation = True
    assert await ask(bench, FINAL, HARMFUL) == ANSWER
    assert [(flag.place, flag.action) for flag in bench.store.flags] == [(Place.INPUT, kept)]


@pytest.mark.parametrize("kind", [FINAL, DELTA])
async def test_a_flag_that_cannot_be_stored_follows_the_failure_rule(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    for fail_open, error in ((False, StoreUnavailable), (True, InputBlocked)):
        bench = make_bench(script(), block_input=True, fail_open=fail_open)
        bench.store.broken = True
        with pytest.raises(error):
            await ask(bench, kind, HARMFUL)
        assert bench.observed.failures == ["store_unavailable"]


async def test_the_answer_ends_while_the_flag_is_stored(make_bench: MakeBench) -> None:
    bench = make_bench(script(draft_gate=Gate()), block_input=True)
    bench.store.gate = Gate()
    asking = spawn(ask(bench, FINAL, HARMFUL))
    await bench.store.gate.arrived.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert bench.engine.log[-1] == ("closed", "req-1")
    bench.store.gate.opened.set()
    with pytest.raises(InputBlocked):
        await asking


async def test_a_disconnect_loses_no_flag_of_a_request(make_bench: MakeBench) -> None:
    bench = make_bench(script(), block_input=True)
    bench.store.gate = Gate()
    asking = spawn(ask(bench, FINAL, HARMFUL))
    await bench.store.gate.arrived.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    bench.store.gate.opened.set()
    for _ in range(100):
        await asyncio.sleep(0)
    assert [flag.place for flag in bench.store.flags] == [Place.INPUT]


@pytest.mark.parametrize("kind", [FINAL, DELTA])
async def test_a_failing_critic_follows_the_failure_rule(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    failing = script(fail_critique=RuntimeError("scripted"))
    bench = make_bench(failing, block_input=True, stream=StreamMode.WINDOW)
    with pytest.raises(CriticUnavailable):
        await ask(bench, kind, FINE)
    bench = make_bench(failing, block_input=True, stream=StreamMode.WINDOW, fail_open=True)
    assert await ask(bench, kind, HARMFUL) == ANSWER


async def test_the_engines_own_errors_pass_through(make_bench: MakeBench) -> None:
    bench = make_bench(script(fail_draft=ValueError("scripted"), gate=Gate()), block_input=True)
    with pytest.raises(ValueError, match="scripted"):
        await ask(bench, FINAL, FINE)
    assert bench.call.error is None
