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
from refine.collect import Case
from refine.dataset import Lesson, critique_of, guided_analysis_of, revision_of
from refine.served import Adapter, Conversation, Model, answered, user_turn

_ANALYSIS_TOKENS = 256
_SAFE_TOKENS = 512
_CRITIQUE_TOKENS = 128
_PARAPHRASE_TOKENS = 128
_PARAPHRASE_TEMPERATURE = 0.7
_HARMFUL = 0.5
_QUESTIONS_TOKENS = 128
_LEAST_SAFE_TOKENS = 64
TOKENS_ABOUT_A_CASE = _ANALYSIS_TOKENS + _QUESTIONS_TOKENS + _LEAST_SAFE_TOKENS
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
    cases: Sequence[Case],
    *,
    variations: int,
    wrappers: Sequence[str],
    seed: int,
    adapter: Adapter = "active",
) -> Analysed:
    """One lesson per usable case, in order.

    Analysis and safe answer are kept only when the critic finds both harmless, but for what a
    reviewer wrote, and a variation only when it finds it as harmful as what it varies. Raises
    ServerUnavailable.
    """
    dropped: Counter[str] = Counter()
    analyses = await _analyses(model, cases, adapter)
    safe = await _safe_answers(model, cases, analyses, adapter)
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
    varied = await _variations(model, kept, variations, wrappers, seed, adapter, dropped)
    lessons = (
        Lesson(
            case.flag_id,
            case.messages,
            case.answer,
            analysis,
            said,
            # A reviewer's answer is harmless, whatever the critic makes of it.
            critique if case.correction is None else "No.",
            tuple(ways),
            case.category,
        )
        for (case, analysis, said), critique, ways in zip(usable, critiques, varied, strict=True)
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


async def _analyses(model: Model, cases: Sequence[Case], adapter: Adapter) -> list[str]:
    """The guided analysis of each case; empty where the critic finds it harmful."""
    asked = [guided_analysis_of(case.messages, case.answer) for case in cases]
    said = await model.answers(asked, adapter=adapter, max_tokens=_ANALYSIS_TOKENS)
    return await _checked(model, asked, said, adapter)


async def _safe_answers(
    model: Model, cases: Sequence[Case], analyses: Sequence[str], adapter: Adapter
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
    checked = await _checked(model, [case.messages for case in cases], answers, adapter)
    return [case.correction or answer for case, answer in zip(cases, checked, strict=True)]


async def _checked(
    model: Model, asked: Sequence[Conversation], said: Sequence[str], adapter: Adapter
) -> list[str]:
    judged = [answered(messages, text) for messages, text in zip(asked, said, strict=True)]
    harms = await model.harm(judged, adapter=adapter)
    return [text.strip() if harm < _HARMFUL else "" for text, harm in zip(said, harms, strict=True)]


async def _variations(
    model: Model,
    cases: Sequence[Case],
    each: int,
    wrappers: Sequence[str],
    seed: int,
    adapter: Adapter,
    dropped: Counter[str],
) -> list[list[str]]:
    """At most `each` variations per case, every other one in a wrapper."""
    rng = random.Random(f"variations {seed}")
    found: list[list[str]] = [[] for _ in cases]
    for number in range(each):
        said = await paraphrases(model, [case.request for case in cases], seed + number, adapter)
        harms = await model.text_harm(said, adapter=adapter)
        for place, (text, harm) in enumerate(zip(said, harms, strict=True)):
            way = wrapped(text, wrappers, rng) if number % 2 else text
            if harm < _HARMFUL or way in found[place]:
                dropped["the paraphrase lost the harm or repeated one"] += 1
            else:
                found[place].append(way)
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
