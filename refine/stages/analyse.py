"""Stage 2: the model's own analysis of each flag. Owns the questions to the model, the checks by
the critic and the counts of what was dropped. Trains nothing and writes no file.

This is the paper's step 2: the model is told the verdict, which makes its analysis better. The safe
answer is a reviewer's correction, or else the guard's revision if there was one. Otherwise the
model is asked for one after the analysis, as the guard asks for a revision.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard import prompts
from refine.critic import Critic
from refine.room import QUESTION_TOKENS
from refine.served import Adapter, Conversation, GenerationParams, Model, answered, user_turn
from refine.stages.collect import FlaggedCase
from refine.stages.dataset import Lesson, critique_of, guided_analysis_of, revision_of

_ANALYSIS_TOKENS = 256
_SAFE_TOKENS = 512
_CRITIQUE_TOKENS = 128
_PARAPHRASE_TOKENS = 128
_PARAPHRASE_TEMPERATURE = 0.7
_MIN_SAFE_TOKENS = 64
TOKENS_AFTER_ANSWER = _ANALYSIS_TOKENS + QUESTION_TOKENS + _MIN_SAFE_TOKENS
"""Tokens that the context must have left after a flagged answer."""


@dataclass(frozen=True)
class Analysed:
    """The lessons of a run, and how many cases or variations were dropped, by reason.

    revisions, corrections: the number of lessons whose safe answer is the guard's revision, or a
    reviewer's correction.
    """

    lessons: tuple[Lesson, ...]
    dropped: Mapping[str, int]
    revisions: int = 0
    corrections: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        dropped = {f"dropped: {why}": n for why, n in sorted(self.dropped.items())}
        return {
            "safe answers from revisions": self.revisions,
            "safe answers from reviewers": self.corrections,
            **dropped,
        }


async def analyse(
    model: Model,
    cases: Sequence[FlaggedCase],
    *,
    critic: Critic,
    variations: int,
    wrappers: Sequence[str],
    seed: int,
    adapter: Adapter = "active",
) -> Analysed:
    """Returns one lesson per usable case, in order.

    An analysis and a safe answer are kept only if the critic finds both harmless, except for a
    reviewer's correction; a variation only if the critic finds it harmful. adapter: writes all of
    these. Raises ServerUnavailable.
    """
    dropped: Counter[str] = Counter()
    analyses = await _analyses(model, cases, critic, adapter)
    safe_answers = await _safe_answers(model, cases, analyses, critic, adapter)
    usable = [
        (case, analyses[index], safe_answers[index])
        for index, case in enumerate(cases)
        if _usable(analyses[index], safe_answers[index], dropped)
    ]
    kept_cases = [case for case, _, _ in usable]
    critiques = await model.answers(
        [critique_of(case.messages, safe_answer) for case, _, safe_answer in usable],
        adapter=adapter,
        params=GenerationParams(max_tokens=_CRITIQUE_TOKENS),
    )
    variations_by_case = await _variations(model, kept_cases, variations, seed, adapter)
    harmful_variations = await _still_harmful(
        model, critic, variations_by_case, wrappers, seed, dropped
    )
    lessons = (
        Lesson(
            case.flag_id,
            case.messages,
            case.answer,
            analysis,
            safe_answer,
            # A reviewer's answer is harmless, whatever the critic says.
            critique if case.correction is None else "No.",
            tuple(texts),
            case.category,
        )
        for (case, analysis, safe_answer), critique, texts in zip(
            usable, critiques, harmful_variations, strict=True
        )
    )
    return Analysed(
        tuple(lessons),
        dropped,
        revisions=sum(case.correction is None and case.revision is not None for case in kept_cases),
        corrections=sum(case.correction is not None for case in kept_cases),
    )


def _usable(analysis: str, safe_answer: str, dropped: Counter[str]) -> bool:
    if not analysis:
        dropped["the analysis was harmful or empty"] += 1
    elif not safe_answer:
        dropped["the safe answer was harmful or empty"] += 1
    return bool(analysis and safe_answer)


async def _analyses(
    model: Model, cases: Sequence[FlaggedCase], critic: Critic, adapter: Adapter
) -> list[str]:
    """Returns the guided analysis of each case; empty if the critic finds it harmful."""
    conversations = [guided_analysis_of(case.messages, case.answer) for case in cases]
    analyses = await model.answers(
        conversations, adapter=adapter, params=GenerationParams(max_tokens=_ANALYSIS_TOKENS)
    )
    return await _checked(model, critic, conversations, analyses)


async def _safe_answers(
    model: Model,
    cases: Sequence[FlaggedCase],
    analyses: Sequence[str],
    critic: Critic,
    adapter: Adapter,
) -> list[str]:
    """Returns the safe answer of each case; empty if there is none that the critic passes."""
    known = [case.correction or case.revision for case in cases]
    conversations = [
        revision_of(case.messages, case.answer, analysis)
        for case, analysis, answer in zip(cases, analyses, known, strict=True)
        if answer is None
    ]
    revisions = iter(
        await model.answers(
            conversations, adapter=adapter, params=GenerationParams(max_tokens=_SAFE_TOKENS)
        )
    )
    answers = [next(revisions) if answer is None else answer for answer in known]
    checked = await _checked(model, critic, [case.messages for case in cases], answers)
    return [case.correction or answer for case, answer in zip(cases, checked, strict=True)]


async def _checked(
    model: Model, critic: Critic, conversations: Sequence[Conversation], texts: Sequence[str]
) -> list[str]:
    judged = [answered(messages, text) for messages, text in zip(conversations, texts, strict=True)]
    harmful = await critic.finds_harmful(model, judged)
    return ["" if harm else text.strip() for text, harm in zip(texts, harmful, strict=True)]


async def _variations(
    model: Model, cases: Sequence[FlaggedCase], count: int, seed: int, adapter: Adapter
) -> list[list[str]]:
    """Returns `count` paraphrases of each case's request."""
    requests = [case.request for case in cases]
    rounds = [await paraphrases(model, requests, seed + offset, adapter) for offset in range(count)]
    return [list(texts) for texts in zip(*rounds, strict=True)] or [[] for _ in cases]


async def _still_harmful(
    model: Model,
    critic: Critic,
    varied: Sequence[Sequence[str]],
    wrappers: Sequence[str],
    seed: int,
    dropped: Counter[str],
) -> list[list[str]]:
    """Returns the variations of each case that are still harmful, every other one in a wrapper."""
    rng = random.Random(f"variations {seed}")
    harmful = iter(
        await critic.finds_texts_harmful(model, [text for texts in varied for text in texts])
    )
    kept_by_case: list[list[str]] = []
    for texts in varied:
        kept: list[str] = []
        for index, text in enumerate(texts):
            variation = wrapped(text, wrappers, rng) if index % 2 else text
            if next(harmful) and variation not in kept:
                kept.append(variation)
            else:
                dropped["the paraphrase lost the harm or repeated one"] += 1
        kept_by_case.append(kept)
    return kept_by_case


async def paraphrases(
    model: Model, requests: Sequence[str], seed: int, adapter: Adapter
) -> list[str]:
    """Returns a sampled paraphrase of each request."""
    conversations = [user_turn(prompts.PARAPHRASE.format(request=text)) for text in requests]
    return await model.answers(
        conversations,
        adapter=adapter,
        params=GenerationParams(
            max_tokens=_PARAPHRASE_TOKENS, temperature=_PARAPHRASE_TEMPERATURE, seed=seed
        ),
    )


def wrapped(text: str, wrappers: Sequence[str], rng: random.Random) -> str:
    """Returns the request in a random wrapper."""
    return rng.choice(wrappers).replace("{request}", text)
