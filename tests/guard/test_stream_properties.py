"""Whatever the text, the pieces and the windows: what is let out is the start of what passed."""

import asyncio
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind

from guard.call import StreamMode
from guard.scripted import Script
from tests.guard.test_release import text_of
from tests.scripted import BLOCK, Bench

MARK = "forbidden"
WORDS = st.one_of(
    st.sampled_from(["the", "fern", "water", "a", "door.", "\n\n", "  ", "x" * 40]),
    st.text(
        alphabet=st.characters(min_codepoint=33, exclude_categories=("Cs", "Cc")),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(
        ["\U0001f600", "e\u0301", "\u4f60\u597d", "\u05e9\u05dc", "\U0001f469\u200d\U0001f52c"]
    ),
)
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)
WINDOWS = st.tuples(st.integers(1, 8), st.floats(1, 3), st.integers(8, 24))


def released(
    make_bench: Callable[..., Bench],
    answer: str,
    piece_tokens: int,
    windows: tuple[int, float, int],
    stream: StreamMode,
) -> tuple[str, Bench]:
    """Returns all text of a stream."""
    script = Script(
        answers=lambda prompt: (answer,),
        harm=lambda prompt: 0.9 if MARK in prompt else 0.01,
        piece_tokens=piece_tokens,
    )
    bench = make_bench(script, policy=BLOCK, stream=stream, windows=windows)
    return text_of(asyncio.run(bench.ask(kind=RequestOutputKind.DELTA))), bench


PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PROPERTY
@given(TEXTS, st.integers(1, 6), WINDOWS, st.sampled_from(StreamMode))
def test_an_answer_that_passes_comes_out_whole(
    make_bench: Callable[..., Bench],
    answer: str,
    piece_tokens: int,
    windows: tuple[int, float, int],
    stream: StreamMode,
) -> None:
    text, _ = released(make_bench, answer, piece_tokens, windows, stream)
    assert text == answer


@PROPERTY
@given(
    TEXTS,
    TEXTS,
    st.integers(1, 6),
    WINDOWS,
    st.sampled_from([StreamMode.WINDOW, StreamMode.BUFFER]),
)
def test_of_a_flagged_answer_only_what_passed_comes_out(
    make_bench: Callable[..., Bench],
    before: str,
    after: str,
    piece_tokens: int,
    windows: tuple[int, float, int],
    stream: StreamMode,
) -> None:
    answer = f"{before} {MARK} {after}"
    text, bench = released(make_bench, answer, piece_tokens, windows, stream)
    assert text.endswith(bench.policy.refusal)
    shown = text.removesuffix(bench.policy.refusal).removesuffix("\n\n")
    assert answer.startswith(shown)
    assert MARK not in shown
    (flag,) = bench.store.flags
    assert answer.startswith(flag.answer)
    assert MARK in flag.answer
    assert flag.released_chars == len(shown)
    assert stream is StreamMode.WINDOW or not shown
