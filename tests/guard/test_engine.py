"""The guarded engine's sequence: what is released, withheld and recorded, and failures."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard import prompts
from guard.call import current_call
from guard.errors import (
    CriticUnavailable,
    GuardError,
    InputBlocked,
    StoreUnavailable,
    Unsupported,
)
from guard.policy import Action
from guard.scripted import Gate, Script
from tests.scripted import Bench

MakeBench = Callable[..., Bench]

SECRET = "First take the forbidden key, then break the quiet door."
HARMFUL = Script(
    answers=lambda prompt: (SECRET,), harm=lambda prompt: 0.9 if SECRET in prompt else 0.1
)
KINDS = list(RequestOutputKind)
ANNOTATE = '[default]\nthreshold = 0.5\naction = "annotate"\n'


def text_of(outputs: list[RequestOutput], kind: RequestOutputKind, index: int = 0) -> str:
    pieces = [o.text for out in outputs for o in out.outputs if o.index == index]
    return "".join(pieces) if kind is RequestOutputKind.DELTA else pieces[-1]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unflagged_answer_comes_out_as_the_engine_made_it(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    answer = "Give it a little water each morning."
    bench = make_bench(Script(answers=lambda prompt: (answer,)))
    outputs = await bench.ask(kind=kind)
    assert text_of(outputs, kind) == answer
    assert outputs[-1].outputs[0].finish_reason == "stop"
    assert bench.store.flags == []
    assert bench.observed.actions == [Action.PASS]
    assert bench.observed.verdicts == [("none", "base")]
    assert bench.observed.policies == ["default"]


async def test_verdicts_are_counted_by_the_requests_policy(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.call.policy = replace(bench.policy, name="kids")
    await bench.ask()
    assert bench.observed.policies == ["kids"]


async def test_a_stream_keeps_its_own_pieces(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda prompt: ("one two three four",), piece_tokens=1))
    outputs = await bench.ask(kind=RequestOutputKind.DELTA)
    assert len(outputs) > 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flagged_answer_is_withheld_whole(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    bench = make_bench(HARMFUL)
    outputs = await bench.ask(kind=kind, logprobs=1)
    (final,) = [o for out in outputs for o in out.outputs]
    assert final.finish_reason == "content_filter"
    assert final.text == bench.policy.refusal
    decoded = bench.engine.tokenizer.decode(list(final.token_ids))
    shown = f"{final} {decoded} {final.logprobs}"
    assert not any(word in shown for word in ("forbidden", "quiet", "door"))
    assert bench.observed.actions == [Action.BLOCK]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_withheld_answer_keeps_its_token_count(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    bench = make_bench(HARMFUL)
    outputs = await bench.ask(kind=kind)
    drafted = len(bench.engine.tokenizer.encode(SECRET)) + 1
    assert len(outputs[-1].outputs[0].token_ids) == drafted


@pytest.mark.parametrize("kind", KINDS)
async def test_of_several_choices_only_the_flagged_is_withheld(
    make_bench: MakeBench, kind: RequestOutputKind
) -> None:
    fine = "Water it well every single morning before work."
    script = Script(answers=lambda prompt: (fine, SECRET), harm=HARMFUL.harm)
    bench = make_bench(script)
    outputs = await bench.ask(kind=kind, n=2)
    assert text_of(outputs, kind, 0) == fine
    assert text_of(outputs, kind, 1) == bench.policy.refusal
    assert [flag.choice for flag in bench.store.flags] == [1]


async def test_annotate_releases_the_answer_and_records_it(make_bench: MakeBench) -> None:
    bench = make_bench(HARMFUL, policy=ANNOTATE)
    outputs = await bench.ask()
    assert outputs[-1].outputs[0].text == SECRET
    assert [flag.action for flag in bench.store.flags] == [Action.ANNOTATE]
    assert bench.call.annotated


async def test_a_caller_may_ask_for_blocking_where_the_policy_annotates(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(HARMFUL, policy=ANNOTATE)
    bench.call.block_output = True
    outputs = await bench.ask()
    assert outputs[-1].outputs[0].finish_reason == "content_filter"
    assert [flag.action for flag in bench.store.flags] == [Action.BLOCK]


async def test_the_flag_says_where_it_came_from(make_bench: MakeBench) -> None:
    bench = make_bench(HARMFUL)
    bench.call.messages = [{"role": "user", "content": "Tell me."}]
    bench.call.open_turn = "Tell me."
    bench.call.user = "ada"
    await bench.ask()
    (flag,) = bench.store.flags
    assert (flag.request_id, flag.route, flag.answer) == ("req-1", "/v1/chat/completions", SECRET)
    assert flag.messages == [{"role": "user", "content": "Tell me."}]
    assert flag.harm == pytest.approx(0.9)
    assert flag.category_scores["violence"] == pytest.approx(0.9)
    assert flag.categories == ("violence",)
    assert (flag.adapter, flag.model, flag.model_revision) == ("base", "practice", "rev-1")
    assert (flag.policy_hash, flag.prompt_version) == (
        bench.policy.hash,
        prompts.VERSION,
    )
    assert flag.user_hash
    assert "ada" not in flag.user_hash


async def test_the_critique_follows_the_answer_in_its_own_conversation(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(HARMFUL)
    await bench.ask("Tell me.")
    (_, draft), (_, critique), (_, category), *_ = bench.engine.log
    assert critique.startswith(draft + SECRET)
    assert prompts.CRITIQUE.format(subject="answer") in critique
    assert prompts.CATEGORY.format(subject="answer") in category


async def test_the_category_is_read_only_when_flagged(make_bench: MakeBench) -> None:
    bench = make_bench()
    await bench.ask()
    assert [what for what, _ in bench.engine.log] == ["draft", "read"]


async def test_the_reminder_stands_in_the_system_turn(make_bench: MakeBench) -> None:
    with_it, without = make_bench(reminder=True), make_bench()
    await with_it.ask("Tell me.")
    await without.ask("Tell me.")
    system = f"<|im_start|>system\n{prompts.REMINDER}<|im_end|>\n"
    assert with_it.engine.log[0][1] == system + without.engine.log[0][1]


async def test_the_reminder_gives_way_when_there_is_no_room(make_bench: MakeBench) -> None:
    bench = make_bench(reminder=True)
    size = len(bench.chat_format.conversation([{"role": "user", "content": ""}]))
    long = bench.engine.tokenizer.decode([bench.engine.tokenizer.encode("a")[0]] * (1020 - size))
    await bench.ask(long)
    assert prompts.REMINDER not in bench.engine.log[0][1]


async def test_a_raw_completion_is_judged_as_a_text(make_bench: MakeBench) -> None:
    bench = make_bench(HARMFUL)
    prompt_ids = bench.engine.tokenizer.encode("Once upon a time ")
    outputs = await bench.generate({"type": "token", "prompt_token_ids": prompt_ids})
    assert outputs[-1].outputs[0].finish_reason == "content_filter"
    critique = bench.engine.log[1][1]
    assert f"Once upon a time {SECRET}" in critique
    assert prompts.CRITIQUE.format(subject="text") in critique
    assert bench.store.flags[0].messages == [{"role": "user", "content": "Once upon a time "}]


async def test_prompts_that_no_question_can_follow_are_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(Unsupported) as caught:
        await bench.generate({"type": "embeds", "prompt_embeds": object()})
    assert caught.value.param == "prompt_embeds"
    assert bench.engine.log == []


async def test_a_failing_critic_withholds_the_answer(make_bench: MakeBench) -> None:
    bench = make_bench(Script(fail_critique=RuntimeError("scripted")))
    with pytest.raises(CriticUnavailable):
        await bench.ask()
    assert isinstance(bench.call.error, CriticUnavailable)
    assert bench.observed.failures == ["critic_unavailable"]
    assert bench.observed.actions == []


@pytest.mark.parametrize("fail_open", [False, True])
async def test_an_aborted_answer_is_not_judged(make_bench: MakeBench, fail_open: bool) -> None:
    bench = make_bench(Script(aborts=True), fail_open=fail_open)
    with pytest.raises(CriticUnavailable, match="aborted the answer"):
        await bench.ask()
    assert [kind for kind, _ in bench.engine.log] == ["draft"]


async def test_a_slow_critic_counts_as_failed(make_bench: MakeBench) -> None:
    bench = make_bench(Script(critique_delay_s=60), timeout_s=0.05)
    with pytest.raises(CriticUnavailable, match="in time"):
        await bench.ask()


async def test_a_failing_store_withholds_even_what_is_only_annotated(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(HARMFUL, policy=ANNOTATE)
    bench.store.broken = True
    with pytest.raises(StoreUnavailable):
        await bench.ask()
    assert bench.observed.failures == ["store_unavailable"]


async def test_failing_open_releases_unjudged_answers(make_bench: MakeBench) -> None:
    bench = make_bench(
        Script(answers=HARMFUL.answers, fail_critique=RuntimeError("scripted")), fail_open=True
    )
    outputs = await bench.ask()
    assert outputs[-1].outputs[0].text == SECRET
    assert bench.observed.failures == ["critic_unavailable"]


async def test_failing_open_never_releases_flagged_answers(make_bench: MakeBench) -> None:
    bench = make_bench(HARMFUL, fail_open=True)
    bench.store.broken = True
    outputs = await bench.ask()
    assert outputs[-1].outputs[0].finish_reason == "content_filter"


async def test_the_engines_own_errors_pass_through(make_bench: MakeBench) -> None:
    bench = make_bench(Script(fail_draft=ValueError("scripted")))
    with pytest.raises(ValueError, match="scripted"):
        await bench.ask()
    assert bench.call.error is None


async def test_asked_for_scores_cover_input_and_output(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.call.wants_moderation = True
    bench.call.messages = [{"role": "user", "content": "Tell me."}]
    bench.call.open_turn = "Tell me."
    await bench.ask()
    assert bench.call.input_ruling is not None
    (ruling,) = bench.call.output_rulings.values()
    for judged in (bench.call.input_ruling, ruling):
        assert judged.verdict is not None
        assert judged.verdict.category_scores is not None


async def test_flagged_input_is_blocked_when_the_caller_asks(make_bench: MakeBench) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.9))
    bench.call.wants_moderation = bench.call.block_input = True
    bench.call.messages = [{"role": "user", "content": "Tell me."}]
    bench.call.open_turn = "Tell me."
    with pytest.raises(InputBlocked):
        await bench.ask()


async def test_a_client_that_leaves_closes_the_draft(make_bench: MakeBench) -> None:
    drafting = asyncio.Event()

    def answer(_prompt: str) -> tuple[str, ...]:
        drafting.set()
        return ("word " * 500,)

    bench = make_bench(Script(answers=answer))
    asking = asyncio.ensure_future(bench.ask(kind=RequestOutputKind.DELTA))
    await drafting.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [what for what, _ in bench.engine.log] == ["draft", "closed"]


async def test_a_client_that_leaves_while_its_flag_is_stored_loses_nothing(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(HARMFUL)
    gate = bench.store.gate = Gate()
    before = asyncio.all_tasks()
    asking = asyncio.ensure_future(bench.ask())
    await gate.arrived.wait()
    asking.cancel()
    gate.opened.set()
    await asyncio.wait(asyncio.all_tasks() - before)
    assert len(bench.store.flags) == bench.observed.flags == 1


async def test_without_an_http_request_the_guard_works_all_the_same(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(HARMFUL)
    assert current_call.get() is None
    prompt_ids = bench.chat_format.conversation([{"role": "user", "content": "Tell me."}])
    outputs = [
        out
        async for out in bench.guarded.generate(
            {"type": "token", "prompt_token_ids": prompt_ids},
            SamplingParams(max_tokens=64),
            "background",
        )
    ]
    assert outputs[-1].outputs[0].finish_reason == "content_filter"
    assert len(bench.store.flags) == 1


async def test_other_methods_are_the_wrapped_engines_own(make_bench: MakeBench) -> None:
    bench = make_bench()
    assert bench.guarded.model_config is bench.engine.model_config


def test_every_guard_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in GuardError.__subclasses__()]
    assert len(codes) == len(set(codes))


async def test_the_action_pass_records_without_annotating(make_bench: MakeBench) -> None:
    bench = make_bench(HARMFUL, policy='[default]\nthreshold = 0.5\naction = "pass"\n')
    outputs = await bench.ask()
    assert outputs[-1].outputs[0].text == SECRET
    assert [flag.action for flag in bench.store.flags] == [Action.PASS]
    assert not bench.call.annotated


async def test_the_tokens_of_critiques_are_counted(make_bench: MakeBench) -> None:
    bench = make_bench(Script())
    await bench.ask("Ask.")
    # The scripted engine has no cache.
    critiques = [text for what, text in bench.engine.log if what == "read"]
    expected = sum(len(bench.engine.tokenizer.encode(text)) for text in critiques)
    assert (bench.observed.tokens.cached, bench.observed.tokens.computed) == (0, expected)
