"""Stage 2: what the model itself makes of each flag. Owns the questions asked, the checks by the
critic and the count of what was unusable. Trains nothing and writes no file.

The paper's step 2: the analyst is told the verdict, so that its analysis is good. The safe answer
is what a reviewer wrote, or else the guard's revision where one was let out; else it is asked for
after the analysis, as the guard asks for a revision.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard import prompts
from refine.critic import Critic
from refine.room import QUESTION_TOKENS
from refine.served import Adapter, Conversation, Model, answered, user_turn
from refine.stages.collect import FlaggedCase
from refine.stages.dataset import Lesson, critique_of, guided_analysis_of, revision_of

_ANALYSIS_TOKENS = 256
_SAFE_TOKENS = 512
_CRITIQUE_TOKENS = 128
_PARAPHRASE_TOKENS = 128
_PARAPHRASE_TEMPERATURE = 0.7
_LEAST_SAFE_TOKENS = 64
TOKENS_ABOUT_A_CASE = _ANALYSIS_TOKENS + QUESTION_TOKENS + _LEAST_SAFE_TOKENS
"""What the context must have room for after a flagged answer."""


@dataclass(frozen=True)
class Analysed:
    """The lessons of a run, and how many cases or variations were dropped, by why.

    revisions, corrections: of how many lessons the safe answer is the guard's revision, or what a
    reviewer wrote.
    """

    lessons: tuple[Lesson, ...]
    dropped: Mapping[str, int]
    revisions: int = 0
    corrections: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """For the run's row."""
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
    """One lesson per usable case, in order.

    Analysis and safe answer are kept only when the critic finds both harmless, but for what a
    reviewer wrote, and a variation only when it finds it as harmful as what it varies. adapter: who
    writes. Raises ServerUnavailable.
    """
    dropped: Counter[str] = Counter()
    analyses = await _analyses(model, cases, critic, adapter)
    safe = await _safe_answers(model, cases, analyses, critic, adapter)
    usable = [
        (case, analyses[place], safe[place])
        for place, case in enumerate(cases)
        if _usable(analyses[place], safe[place], dropped)
    ]
    kept = [case for case, _, _ in usable]
    critiques = await model.answers(
        [critique_of(case.messages, said) for case, _, said in usable],
        adapter=adapter,
        max_tokens=_CRITIQUE_TOKENS,
    )
    ways = await _variations(model, kept, variations, seed, adapter)
    varied = await _as_harmful(model, critic, ways, wrappers, seed, dropped)
    lessons = (
        Lesson(
            case.flag_id,
            case.messages,
            case.answer,
            analysis,
            said,
            # A reviewer's answer is harmless, whatever the critic makes of it.
            critique if case.correction is None else "No.",
            tuple(texts),
            case.category,
        )
        for (case, analysis, said), critique, texts in zip(usable, critiques, varied, strict=True)
    )
    return Analysed(
        tuple(lessons),
        dropped,
        revisions=sum(case.correction is None and case.revision is not None for case in kept),
        corrections=sum(case.correction is not None for case in kept),
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
    """The guided analysis of each case; empty where the critic finds it harmful."""
    asked = [guided_analysis_of(case.messages, case.answer) for case in cases]
    said = await model.answers(asked, adapter=adapter, max_tokens=_ANALYSIS_TOKENS)
    return await _checked(model, critic, asked, said)


async def _safe_answers(
    model: Model,
    cases: Sequence[FlaggedCase],
    analyses: Sequence[str],
    critic: Critic,
    adapter: Adapter,
) -> list[str]:
    """The safe answer of each case; empty where the critic finds it harmful, or there is none."""
    known = [case.correction or case.revision for case in cases]
    asked = [
        revision_of(case.messages, case.answer, analysis)
        for case, analysis, answer in zip(cases, analyses, known, strict=True)
        if answer is None
    ]
    said = iter(await model.answers(asked, adapter=adapter, max_tokens=_SAFE_TOKENS))
    answers = [next(said) if answer is None else answer for answer in known]
    checked = await _checked(model, critic, [case.messages for case in cases], answers)
    return [case.correction or answer for case, answer in zip(cases, checked, strict=True)]


async def _checked(
    model: Model, critic: Critic, asked: Sequence[Conversation], said: Sequence[str]
) -> list[str]:
    judged = [answered(messages, text) for messages, text in zip(asked, said, strict=True)]
    harmful = await critic.finds_harmful(model, judged)
    return ["" if harm else text.strip() for text, harm in zip(said, harmful, strict=True)]


async def _variations(
    model: Model, cases: Sequence[FlaggedCase], each: int, seed: int, adapter: Adapter
) -> list[list[str]]:
    """`each` paraphrases of each case's request."""
    requests = [case.request for case in cases]
    drawn = [await paraphrases(model, requests, seed + number, adapter) for number in range(each)]
    return [list(texts) for texts in zip(*drawn, strict=True)] or [[] for _ in cases]


async def _as_harmful(
    model: Model,
    critic: Critic,
    varied: Sequence[Sequence[str]],
    wrappers: Sequence[str],
    seed: int,
    dropped: Counter[str],
) -> list[list[str]]:
    """Of each case's variations those that are harmful still, every other one in a wrapper."""
    rng = random.Random(f"variations {seed}")
    harmful = iter(
        await critic.finds_texts_harmful(model, [text for texts in varied for text in texts])
    )
    found: list[list[str]] = []
    for texts in varied:
        kept: list[str] = []
        for number, text in enumerate(texts):
            way = wrapped(text, wrappers, rng) if number % 2 else text
            if next(harmful) and way not in kept:
                kept.append(way)
            else:
                dropped["the paraphrase lost the harm or repeated one"] += 1
        found.append(kept)
    return found


async def paraphrases(
    model: Model, requests: Sequence[str], seed: int, adapter: Adapter
) -> list[str]:
    """Each request in other words, sampled."""
    asked = [user_turn(prompts.PARAPHRASE.format(request=text)) for text in requests]
    return await model.answers(
        asked,
        adapter=adapter,
        max_tokens=_PARAPHRASE_TOKENS,
        temperature=_PARAPHRASE_TEMPERATURE,
        seed=seed,
    )


def wrapped(text: str, wrappers: Sequence[str], rng: random.Random) -> str:
    """The request in one of the wrappers."""
    return rng.choice(wrappers).replace("{request}", text)
