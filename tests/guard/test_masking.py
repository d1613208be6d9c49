"""Words, patterns and personal data that a policy masks: a placeholder stands for each, whole or
streamed, and nothing else of an output tells what it stands for."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind

from guard.call import StreamMode
from guard.errors import PolicyInvalid
from guard.policy import Action
from guard.policy_file import load_policy
from guard.scripted import Script
from tests.guard.test_release import text_of
from tests.scripted import Bench

MakeBench = Callable[..., Bench]
POLICY = """
[[criteria]]
name = "projects"
words = ["Project Heron"]
action = "mask"

[[criteria]]
name = "addresses"
personal_data = ["EMAIL_ADDRESS"]
action = "mask"
"""
ANSWER = "Ask ann@example.org about Project Heron, soon."
MASKED = "Ask <EMAIL_ADDRESS> about <projects>, soon."


def saying(answer: str, piece_tokens: int = 3) -> Script:
    return Script(answers=lambda _: (answer,), piece_tokens=piece_tokens)


async def test_a_whole_answer_is_masked_and_recorded(make_bench: MakeBench) -> None:
    bench = make_bench(saying(ANSWER), policy=POLICY)
    (output,) = await bench.ask()
    (choice,) = output.outputs
    assert (choice.text, choice.finish_reason) == (MASKED, "stop")
    (flag,) = bench.store.flags
    assert (flag.action, flag.categories) == (Action.MASK, ("projects", "addresses"))


async def test_an_answer_with_nothing_to_mask_is_as_it_was(make_bench: MakeBench) -> None:
    (plain,) = await make_bench(saying("Ask Ann."), policy="").ask()
    (masking,) = await make_bench(saying("Ask Ann."), policy=POLICY).ask()
    assert masking.outputs[0].text == "Ask Ann."
    assert masking.outputs[0].token_ids == plain.outputs[0].token_ids


async def test_tokens_and_log_probabilities_do_not_tell(make_bench: MakeBench) -> None:
    bench = make_bench(saying(ANSWER), policy=POLICY)
    (output,) = await bench.ask(logprobs=2)
    (choice,) = output.outputs
    filler = bench.guarded.renderer.get_tokenizer().eos_token_id
    assert set(choice.token_ids) == {filler}
    assert choice.logprobs is not None
    assert [set(one) for one in choice.logprobs] == [{filler}] * len(choice.token_ids)


PARTS = st.sampled_from(
    ["the", "Project", "ann@", "x.org", "Project Heronry", "bob@b.de", "\n", "计"]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(PARTS, max_size=10).map(" ".join),
    st.sampled_from([" Project  Heron ", " eve@example.com, ", " PROJECT HERON, a@b.org "]),
    st.lists(PARTS, max_size=10).map(" ".join),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_a_stream_is_the_masked_answer(
    make_bench: MakeBench, before: str, match: str, after: str, piece_tokens: int, window: int
) -> None:
    answer = before + match + after
    whole = make_bench(saying(answer), policy=POLICY)
    (output,) = asyncio.run(whole.ask())
    assert "@example" not in output.outputs[0].text
    bench = make_bench(
        saying(answer, piece_tokens),
        policy=POLICY,
        stream=StreamMode.WINDOW,
        windows=(window, 1.0, 64),
    )
    streamed = asyncio.run(bench.ask(kind=RequestOutputKind.DELTA))
    assert text_of(streamed) == output.outputs[0].text
    assert sum(len(one.outputs[0].token_ids) for one in streamed) == len(
        output.outputs[0].token_ids
    )


async def test_a_stream_that_is_released_at_once_waits_for_verdicts_instead(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(saying(ANSWER, 1), policy=POLICY, stream=StreamMode.ASYNC)
    assert text_of(await bench.ask(kind=RequestOutputKind.DELTA)) == MASKED


async def test_a_caller_who_blocks_gets_a_refusal(make_bench: MakeBench) -> None:
    bench = make_bench(saying(ANSWER), policy=POLICY)
    bench.call.block_output = True
    (output,) = await bench.ask()
    assert output.outputs[0].finish_reason == "content_filter"


async def test_a_policy_in_shadow_masks_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(saying(ANSWER), policy=f"shadow = true\n{POLICY}")
    (output,) = await bench.ask()
    assert output.outputs[0].text == ANSWER
    assert bench.store.flags[0].action is Action.PASS


@pytest.mark.parametrize(
    "policy",
    [
        '[default]\naction = "mask"',
        '[categories.hate]\naction = "mask"',
        '[[criteria]]\nname = "doses"\ndescription = "It names a dose."\naction = "mask"',
        '[[criteria]]\nname = "a"\nwords = ["b"]\napplies_to = ["tool_call"]\naction = "mask"',
        '[[criteria]]\nname = "a"\nmax_characters = 9\naction = "mask"',
    ],
)
def test_what_is_not_found_in_an_answer_cannot_be_masked(tmp_path: Path, policy: str) -> None:
    (tmp_path / "policy.toml").write_text(policy)
    with pytest.raises(PolicyInvalid, match="mask"):
        load_policy(tmp_path / "policy.toml")
