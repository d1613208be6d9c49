"""Words, patterns, personal data, lengths and languages are found as an operator means them, also
in a text that is not whole yet, and no more of them is streamed than may be."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind

from guard.call import StreamMode
from guard.criteria import Place
from guard.languages import languages_of, stretches
from guard.matchers import (
    LanguageMatcher,
    LengthMatcher,
    Matcher,
    PatternMatcher,
    PersonalDataMatcher,
    WordMatcher,
    matches,
)
from guard.policy import Action
from guard.redact import PERSONAL_DATA
from guard.scripted import Script
from guard.tool_calls import ToolCall
from tests.guard.test_languages import ENGLISH, GERMAN, SENTENCES
from tests.guard.test_release import text_of
from tests.scripted import Bench

MakeBench = Callable[..., Bench]
HERON = WordMatcher(("Project Heron", ".env", "naïve", "計画"))
SERIAL = PatternMatcher(r"\bSN-\d{4}\b", longest=7)


@pytest.mark.parametrize(
    ("matcher", "text", "expected"),
    [
        (HERON, "project\n  heron, at last", True),
        (HERON, "(PROJECT HERON)", True),
        (HERON, "subproject heron", False),
        (HERON, "Project Herons", False),
        (HERON, "prod.env", True),
        (HERON, "prod.envelope", False),
        (HERON, "How NAÏVE!", True),
        (HERON, "新計画です", True),
        (HERON, "", False),
        (SERIAL, "It is SN-1234.", True),
        (SERIAL, "It is SN-12345.", False),
        (PersonalDataMatcher(("EMAIL_ADDRESS",)), "Write to ann@example.org.", True),
        (PersonalDataMatcher(("IBAN_CODE",)), "Write to ann@example.org.", False),
        (PersonalDataMatcher(PERSONAL_DATA), "Call 030 901820.", False),
        (PersonalDataMatcher(PERSONAL_DATA, "DE"), "Call 030 901820.", True),
        (LengthMatcher(4), "Fern", False),
        (LengthMatcher(4), "Ferns", True),
        (LanguageMatcher(("en", "de")), f"{ENGLISH} {GERMAN}", False),
        (LanguageMatcher(("de",)), f"{GERMAN} {ENGLISH}", True),
        (LanguageMatcher(("de",)), "OK, thanks!", False),
    ],
)
def test_whole_words_patterns_and_data_are_found(
    matcher: Matcher, text: str, expected: bool
) -> None:
    assert matches(matcher, text, ended=True) is expected


@pytest.mark.parametrize(
    ("matcher", "text"),
    [(HERON, "Project Heron"), (SERIAL, "SN-1234"), (SERIAL, "SN-123")],
)
def test_at_the_end_of_an_unfinished_text_nothing_counts_yet(matcher: Matcher, text: str) -> None:
    assert not matches(matcher, text, ended=False)
    assert matches(matcher, f"{text} is", ended=False) is matches(matcher, text, ended=True)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "missing [)]"),
        (r"(a)\1", "invalid escape"),
        ("a*", "it matches every text"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatternMatcher(pattern)


POLICY = r"""
[[criteria]]
name = "projects"
words = ["Project Heron"]
action = "block"
refusal = "That is no topic here."
[[criteria]]
name = "serials"
pattern = '\bSN-\d{4}\b'
longest = 7
action = "annotate"
[[criteria]]
name = "asked"
personal_data = ["EMAIL_ADDRESS"]
applies_to = ["input"]
"""


async def test_what_is_found_is_flagged_without_a_read(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda _: ("It is project heron.",)), policy=POLICY)
    (output,) = await bench.ask()
    assert output.outputs[0].text == "That is no topic here."
    (flag,) = bench.store.flags
    assert (flag.categories, flag.action) == (("projects",), Action.BLOCK)
    assert flag.category_scores == {"projects": 1.0, "serials": 0.0}
    assert sum(kind == "read" for kind, _ in bench.engine.log) == 1


async def test_an_input_is_searched_where_the_policy_says(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda _: ("Fine.",)), policy=POLICY)
    bench.call.wants_moderation = True
    await bench.ask("Write to ann@example.org about Project Heron.")
    assert bench.call.input_ruling is not None
    assert bench.call.input_ruling.decision.categories == ("asked",)


async def test_a_revision_is_searched_too(make_bench: MakeBench) -> None:
    revise = POLICY.replace('"block"', '"revise"')
    bench = make_bench(Script(answers=lambda _: ("Project Heron.",)), policy=revise)
    (output,) = await bench.ask()
    assert output.outputs[0].text == "That is no topic here."


WORDS = st.sampled_from(["the", "Project", "heron", "project her", "SN-12", "Herons", "\n\n", "计"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(WORDS, max_size=12).map(" ".join),
    st.sampled_from([" Project  Heron ", " PROJECT HERON, "]),
    st.lists(WORDS, max_size=12).map(" ".join),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_nothing_of_a_word_is_streamed(
    make_bench: MakeBench, before: str, word: str, after: str, piece_tokens: int, window: int
) -> None:
    answer = before + word + after
    script = Script(answers=lambda _: (answer,), piece_tokens=piece_tokens)
    bench = make_bench(script, policy=POLICY, stream=StreamMode.WINDOW, windows=(window, 1.0, 64))
    outputs = asyncio.run(bench.ask(kind=RequestOutputKind.DELTA))
    shown = text_of(outputs).removesuffix("That is no topic here.").removesuffix("\n\n")
    assert answer.startswith(shown)
    first = next(iter(HERON.findings(answer))).end - len("Project Heron")
    assert len(shown) <= first


async def test_a_word_that_only_begins_as_one_comes_out_whole(make_bench: MakeBench) -> None:
    answer = "There is a project her team began, SN-123, and so on."
    script = Script(answers=lambda _: (answer,), piece_tokens=1)
    bench = make_bench(script, policy=POLICY, stream=StreamMode.WINDOW, windows=(1, 1.0, 64))
    assert text_of(await bench.ask(kind=RequestOutputKind.DELTA)) == answer
    assert not bench.store.flags


LIMITS = """
[[criteria]]
name = "long"
max_characters = 120
action = "block"
refusal = "Too long."
[[criteria]]
name = "other-language"
languages = ["de", "ja"]
action = "block"
refusal = "Nur Deutsch."
"""
REFUSALS = ("", "Too long.", "Nur Deutsch.")


def refused(text: str) -> tuple[str, str]:
    """Returns the text before a refusal, and the refusal."""
    refusal = next(one for one in reversed(REFUSALS) if text.endswith(one))
    return text.removesuffix(refusal).removesuffix("\n\n") if refusal else text, refusal


def allowed(answer: str) -> int:
    """Returns how many characters come before the first stretch in another language."""
    other = (
        one.end - len(one.text)
        for one in stretches(answer)
        if {*languages_of(one.text, ended=True)} - {"de", "ja"}
    )
    return next(other, len(answer))


SENTENCE = st.sampled_from([one for name in ("de", "ja", "en", "ru") for one in SENTENCES[name]])
PIECE = st.one_of(SENTENCE, st.sampled_from(["42, ", "\n```\n", "\U0001f600", "e\u0301", "\n"]))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(PIECE, min_size=1, max_size=6).map("".join),
    st.sampled_from([120, 300, 5000]),
    st.integers(1, 6),
    st.integers(1, 24),
)
def test_whole_or_streamed_the_same_is_decided_of_lengths_and_languages(
    make_bench: MakeBench, answer: str, limit: int, piece_tokens: int, window: int
) -> None:
    policy = LIMITS.replace("120", str(limit))
    script = Script(answers=lambda _: (answer,), piece_tokens=piece_tokens)
    whole = make_bench(script, policy=policy)
    (output,) = asyncio.run(whole.ask())
    bench = make_bench(script, policy=policy, stream=StreamMode.WINDOW, windows=(window, 1.0, 64))
    shown, refusal = refused(text_of(asyncio.run(bench.ask(kind=RequestOutputKind.DELTA))))
    assert bool(refusal) is (output.outputs[0].finish_reason == "content_filter")
    assert len(bench.store.flags) == len(whole.store.flags)
    if refusal:
        assert answer.startswith(shown)
        assert len(shown) <= limit
        assert len(shown) <= allowed(answer)
    else:
        assert shown == answer


@pytest.mark.parametrize("language", ["en", "ru", "zh", "ar"])
async def test_nothing_of_another_language_is_streamed(
    make_bench: MakeBench, language: str
) -> None:
    answer = " ".join(SENTENCES[language])
    script = Script(answers=lambda _: (answer,), piece_tokens=1)
    policy = LIMITS.replace("120", "5000")
    bench = make_bench(script, policy=policy, stream=StreamMode.WINDOW, windows=(1, 1.0, 64))
    assert text_of(await bench.ask(kind=RequestOutputKind.DELTA)) == "Nur Deutsch."
    assert bench.store.flags[0].released_chars == 0


async def test_a_prompt_has_no_part_in_the_length_of_its_completion(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda _: ("A fern.",)), policy=LIMITS)
    token_ids = bench.engine.tokenizer.encode("x" * 200)
    (output,) = await bench.generate({"type": "token", "prompt_token_ids": token_ids})
    assert output.outputs[0].text == "A fern."


async def test_a_revision_is_no_longer_than_the_answer_may_be(make_bench: MakeBench) -> None:
    prompts: list[str] = []

    def answers(prompt: str) -> tuple[str, ...]:
        prompts.append(prompt)
        return ("Kurz.",) if len(prompts) > 2 else (" ".join(["Blumen"] * 30),)

    policy = LIMITS.replace('"block"', '"revise"')
    bench = make_bench(Script(answers=answers), policy=policy)
    (output,) = await bench.ask()
    assert output.outputs[0].text == "Kurz."
    assert "longer than 120 characters" in prompts[1]


ELSEWHERE = """
[[criteria]]
name = "long"
max_characters = 30
applies_to = ["input", "tool_call", "tool_result"]
action = "annotate"
[[criteria]]
name = "other-language"
languages = ["de"]
applies_to = ["input", "tool_result"]
action = "annotate"
"""


@pytest.mark.parametrize(
    ("request_text", "results", "categories", "places"),
    [
        (ENGLISH, "", ("long", "other-language"), [Place.INPUT]),
        ("Ja?", "x" * 31, ("long",), [Place.TOOL_RESULT]),
        ("Ja?", ENGLISH, ("long", "other-language"), [Place.TOOL_RESULT]),
        ("Ja?", "Nein.", (), []),
    ],
)
async def test_requests_and_tools_results_have_lengths_and_languages_too(
    make_bench: MakeBench,
    request_text: str,
    results: str,
    categories: tuple[str, ...],
    places: list[Place],
) -> None:
    bench = make_bench(Script(answers=lambda _: (ENGLISH,)), policy=ELSEWHERE)
    bench.call.wants_moderation = True
    bench.call.open_turn, bench.call.tool_results = request_text, results
    await bench.ask()
    assert bench.call.input_ruling is not None
    assert bench.call.input_ruling.decision.categories == categories
    assert [flag.place for flag in bench.store.flags] == places


def test_each_tool_call_has_a_length_of_its_own(make_bench: MakeBench) -> None:
    policy = make_bench(policy=ELSEWHERE).policy
    short, long = (ToolCall("look_up", f'{{"plant": "{"x" * length}"}}') for length in (15, 16))
    assert policy.found_in((short, short)) == {"long": 0.0}
    assert policy.found_in((short, long)) == {"long": 1.0}


def test_half_of_a_surrogate_pair_is_searched(make_bench: MakeBench) -> None:
    call = ToolCall("f", '{"a": "\\ud800 Project Heron"}')
    assert matches(HERON, call.words, ended=True)
    assert not matches(SERIAL, call.words, ended=True)
