"""Streams under guard: what is released before a verdict, what a flag stops, and cleanup."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.call import StreamMode, current_call
from guard.errors import CriticUnavailable, InputBlocked, StoreUnavailable
from guard.policy import Action
from guard.scripted import Gate, Script
from guard.tasks import spawn
from tests.scripted import Bench

MakeBench = Callable[..., Bench]

DELTA = RequestOutputKind.DELTA
FINE = "Give the fern a little water each morning and let it stand in the shade until evening."
START = "To open the door, do this. First walk up to the old door in the wall."
SECRET = " Then take the forbidden key and break the quiet lock of the hidden room."
TURNS = Script(
    answers=lambda prompt: (START + SECRET,),
    harm=lambda prompt: 0.9 if "forbidden" in prompt else 0.1,
    piece_tokens=1,
)
ANNOTATE = '[default]\nthreshold = 0.5\naction = "annotate"\n'


def text_of(outputs: list[RequestOutput], index: int = 0) -> str:
    return "".join(o.text for out in outputs for o in out.outputs if o.index == index)


def tokens_of(outputs: list[RequestOutput]) -> int:
    return sum(len(o.token_ids) for out in outputs for o in out.outputs)


async def test_an_unflagged_stream_comes_out_whole_in_several_pieces(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda prompt: (FINE,)), stream=StreamMode.WINDOW)
    outputs = await bench.ask(kind=DELTA, logprobs=1)
    assert text_of(outputs) == FINE
    assert len(outputs) > 1
    assert [out.finished for out in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].outputs[0].finish_reason == "stop"
    drafted = len(bench.engine.tokenizer.encode(FINE)) + 1
    assert tokens_of(outputs) == drafted
    assert sum(len(o.logprobs or ()) for out in outputs for o in out.outputs) == drafted
    assert bench.observed.actions == [Action.PASS]
    assert (bench.observed.critiques, bench.observed.overheads) == (1, 1)
    assert bench.observed.verdicts == [("none", "base")]
    (ruling,) = bench.call.output_rulings.values()
    assert ruling.checked == len(FINE)


async def test_nothing_is_out_before_a_verdict_covers_it(make_bench: MakeBench) -> None:
    gate = Gate()
    script = Script(answers=lambda prompt: (FINE,), gate=gate)
    bench = make_bench(script, stream=StreamMode.WINDOW)
    asking = spawn(bench.ask(kind=DELTA))
    # All is decoded while the first critique is held: decoding does not wait for it.
    await gate.arrived.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not bench.call.streaming_started
    gate.opened.set()
    outputs = await asking
    assert text_of(outputs) == FINE
    # The second critique covered all that came while the first was held.
    assert sum(what == "read" for what, _ in bench.engine.log) == 2


async def test_no_character_of_a_flagged_window_is_released(make_bench: MakeBench) -> None:
    bench = make_bench(TURNS, stream=StreamMode.WINDOW, windows=(4, 1.0, 4))
    outputs = await bench.ask(kind=DELTA, logprobs=1)
    shown, refusal = text_of(outputs[:-1]), outputs[-1].outputs[0]
    assert shown
    assert (START + SECRET).startswith(shown)
    assert refusal.text == f"\n\n{bench.policy.refusal}"
    assert refusal.finish_reason == "content_filter"
    assert outputs[-1].finished
    everything = "".join(f"{out} {bench.engine.tokenizer.decode(o.token_ids)} {o.logprobs}"
                         for out in outputs for o in out.outputs)  # fmt: skip
    assert "forbidden" not in everything
    (flag,) = bench.store.flags
    assert flag.released_chars == len(shown)
    assert "forbidden" in flag.answer
    assert (START + SECRET).startswith(flag.answer)


async def test_a_flag_ends_generation(make_bench: MakeBench) -> None:
    long = START + SECRET + FINE * 20
    script = Script(answers=lambda prompt: (long,), harm=TURNS.harm, piece_tokens=1)
    bench = make_bench(script, stream=StreamMode.WINDOW)
    outputs = await bench.ask(kind=DELTA)
    assert ("closed", "req-1") in bench.engine.log
    assert bench.observed.overheads == 1
    assert tokens_of(outputs) < len(bench.engine.tokenizer.encode(long))


async def test_only_the_flagged_choice_ends(make_bench: MakeBench) -> None:
    script = Script(answers=lambda prompt: (FINE, START + SECRET), harm=TURNS.harm)
    bench = make_bench(script, stream=StreamMode.WINDOW)
    outputs = await bench.ask(kind=DELTA, n=2)
    assert text_of(outputs, 0) == FINE
    assert text_of(outputs, 1).endswith(bench.policy.refusal)
    assert "forbidden" not in text_of(outputs, 1)
    assert [out.finished for out in outputs].count(True) == 1
    assert outputs[-1].finished
    assert [flag.choice for flag in bench.store.flags] == [1]


async def test_an_annotated_stream_is_released_and_recorded_once(make_bench: MakeBench) -> None:
    bench = make_bench(TURNS, policy=ANNOTATE, stream=StreamMode.WINDOW)
    outputs = await bench.ask(kind=DELTA)
    assert text_of(outputs) == START + SECRET
    (flag,) = bench.store.flags
    assert flag.action is Action.ANNOTATE
    assert bench.call.annotated


async def test_a_flag_on_the_way_is_not_forgotten_at_the_end(make_bench: MakeBench) -> None:
    def harm(prompt: str) -> float:
        return 0.9 if "forbidden" in prompt and FINE not in prompt else 0.1

    script = Script(answers=lambda prompt: (START + SECRET + FINE,), harm=harm, piece_tokens=1)
    bench = make_bench(script, policy=ANNOTATE, stream=StreamMode.WINDOW)
    await bench.ask(kind=DELTA)
    assert [flag.action for flag in bench.store.flags] == [Action.ANNOTATE]


async def test_async_flows_at_once_and_a_verdict_ends_it(make_bench: MakeBench) -> None:
    gate = Gate()
    script = Script(answers=TURNS.answers, harm=TURNS.harm, piece_tokens=1, gate=gate)
    bench = make_bench(script, stream=StreamMode.ASYNC)
    outputs: list[RequestOutput] = []
    async for output in stream(bench):
        outputs.append(output)
        # Its last piece waits for the verdict: nobody is told that it ended well before it did.
        if text_of(outputs) == START + SECRET:
            gate.opened.set()
    assert outputs[-1].outputs[0].finish_reason == "content_filter"
    assert text_of(outputs) == f"{START}{SECRET}\n\n{bench.policy.refusal}"
    (flag,) = bench.store.flags
    assert flag.released_chars == len(START + SECRET)


async def test_a_caller_may_ask_for_stricter_and_not_for_looser(make_bench: MakeBench) -> None:
    bench = make_bench(TURNS, stream=StreamMode.WINDOW)
    bench.call.stream = StreamMode.BUFFER
    (final,) = [o for out in await bench.ask(kind=DELTA) for o in out.outputs]
    assert final.text == bench.policy.refusal
    bench.call.stream = StreamMode.ASYNC
    assert "forbidden" not in text_of(await bench.ask(kind=DELTA))


async def test_blocked_input_stops_the_stream_before_it_flows(make_bench: MakeBench) -> None:
    script = Script(answers=lambda prompt: (FINE,), harm=lambda prompt: 0.9 * ("Text:" in prompt))
    bench = make_bench(script, stream=StreamMode.ASYNC)
    bench.call.wants_moderation = bench.call.block_input = True
    with pytest.raises(InputBlocked):
        await bench.ask(kind=DELTA)


async def test_a_failing_critic_ends_the_stream(make_bench: MakeBench) -> None:
    script = Script(answers=lambda prompt: (FINE * 20,), fail_critique=RuntimeError("scripted"))
    bench = make_bench(script, stream=StreamMode.WINDOW)
    with pytest.raises(CriticUnavailable):
        await bench.ask(kind=DELTA)
    assert bench.call.error is not None
    assert ("closed", "req-1") in bench.engine.log
    bench = make_bench(script, stream=StreamMode.WINDOW, fail_open=True)
    assert text_of(await bench.ask(kind=DELTA)) == FINE * 20


async def test_with_a_failing_store_nothing_flagged_is_released(make_bench: MakeBench) -> None:
    bench = make_bench(TURNS, policy=ANNOTATE, stream=StreamMode.WINDOW)
    bench.store.broken = True
    with pytest.raises(StoreUnavailable):
        await bench.ask(kind=DELTA)


async def test_a_disconnect_ends_decoding_and_critiques(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench(
        Script(answers=lambda prompt: (FINE * 20,), gate=gate), stream=StreamMode.WINDOW
    )
    before = asyncio.all_tasks()
    outputs = stream(bench)
    waiting = spawn(anext(outputs))
    await gate.arrived.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert asyncio.all_tasks() == before
    assert ("closed", "req-1") in bench.engine.log


async def stream(bench: Bench) -> AsyncGenerator[RequestOutput, None]:
    """Yields the outputs of one streamed chat request."""
    prompt_ids = bench.chat_format.conversation([{"role": "user", "content": "How?"}])
    prompt = {"type": "token", "prompt_token_ids": prompt_ids}
    current_call.set(bench.call)
    params = SamplingParams(output_kind=DELTA, max_tokens=None)
    outputs = bench.guarded.generate(prompt, params, "req-1")
    async with aclosing(outputs):
        async for output in outputs:
            yield output
