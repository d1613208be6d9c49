"""The critic's reads: windows, categories, failures, and the analysis in words."""

from collections.abc import Callable

import pytest

from guard.critic import Critic
from guard.errors import CriticUnavailable
from guard.scripted import Script
from tests.scripted import Bench

MakeBench = Callable[..., Bench]


def critic_of(bench: Bench) -> Critic:
    return bench.critic


async def test_categories_are_the_harm_shared_out(make_bench: MakeBench) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.8, category="hate"))
    subject = critic_of(bench).text(bench.chat_format.encode("words"))
    verdict = await critic_of(bench).judge(subject, categories_from=0.5)
    assert verdict.harm == pytest.approx(0.8)
    assert verdict.category_scores is not None
    assert verdict.category_scores["hate"] == pytest.approx(0.8)
    assert sum(verdict.category_scores.values()) == pytest.approx(0.8)
    assert verdict.top_category == "hate"
    assert verdict.reads == 2


async def test_below_the_threshold_there_is_one_read(make_bench: MakeBench) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.4))
    subject = critic_of(bench).text(bench.chat_format.encode("words"))
    verdict = await critic_of(bench).judge(subject, categories_from=0.5)
    assert (verdict.category_scores, verdict.reads) == (None, 1)


async def test_the_worst_window_of_a_long_text_counts(make_bench: MakeBench) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.9 if "needle" in prompt else 0.1))
    text = "hay " * 3000 + "needle " + "hay " * 3000
    subject = critic_of(bench).text(bench.chat_format.encode(text))
    assert len(subject.pieces) > 3
    verdict = await critic_of(bench).judge(subject, categories_from=0.5)
    assert verdict.harm == pytest.approx(0.9)
    assert "needle" in bench.engine.log[-1][1]


async def test_a_long_answer_is_judged_in_windows_with_its_request_in_sight(
    make_bench: MakeBench,
) -> None:
    script = Script(
        answers=lambda prompt: ("hay " * 700,), harm=lambda prompt: 0.9 * ("Ask this" in prompt)
    )
    bench = make_bench(script, max_model_len=900)
    await bench.ask("Ask this.")
    reads = [text for what, text in bench.engine.log if what == "read"]
    assert len(reads) > 2
    assert all("Ask this." in text for text in reads)
    assert len(bench.store.flags) == 1


async def test_an_empty_text_is_judged_too(make_bench: MakeBench) -> None:
    bench = make_bench()
    verdict = await critic_of(bench).judge(critic_of(bench).text([]), categories_from=0.0)
    assert verdict.harm == pytest.approx(0.0)


async def test_the_analysis_is_what_the_model_says_after_the_question(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(Script(answers=lambda prompt: ("Yes. It harms someone.",)))
    subject = critic_of(bench).text(bench.chat_format.encode("words"))
    analysis = await critic_of(bench).explain(subject)
    assert analysis.text == "Yes. It harms someone."
    await critic_of(bench).judge(analysis.subject, categories_from=0.5)
    (_, question), (_, judged) = bench.engine.log
    assert judged.startswith(question + analysis.text)


async def test_an_engine_failure_in_the_analysis_is_a_critic_failure(make_bench: MakeBench) -> None:
    bench = make_bench(Script(fail_draft=RuntimeError("scripted")))
    subject = critic_of(bench).text(bench.chat_format.encode("words"))
    with pytest.raises(CriticUnavailable, match="RuntimeError"):
        await critic_of(bench).explain(subject)


def test_a_context_too_small_for_the_questions_is_refused_at_once(make_bench: MakeBench) -> None:
    with pytest.raises(CriticUnavailable, match="max-model-len"):
        make_bench(max_model_len=100)
