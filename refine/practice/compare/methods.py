"""The methods that the paper's table compares, as datasets made from the same flags.

Owns what each method learns from a flag. All of them replay the same ordinary answers, and all
their safe answers are the model's own. How they are trained is cells.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from refine.practice.reader_model import ReaderModel
from refine.served import answered
from refine.stages.dataset import (
    ALL_KINDS,
    Example,
    Kind,
    Lesson,
    Ordinary,
    build,
    critique_of,
    revision_of,
)

_ANALYSIS_TOKENS, _SAFE_TOKENS = 128, 256
_HARMFUL = 0.5
_FLAGGED = "Yes. "


@dataclass(frozen=True)
class Method:
    """kinds: of the examples it learns. revised: whether its safe answers follow the model's own
    critique, which nobody told the verdict, instead of the guided analysis."""

    name: str
    kinds: frozenset[Kind]
    revised: bool = False


SFT = Method("SFT on safe answers", frozenset({Kind.SAFE, Kind.HELP}))
REVISE = Method("critique-then-revise", SFT.kinds, revised=True)
MISTAKES = Method("mistake analysis alone", ALL_KINDS - {Kind.SAFE})
OURS = Method("mistake analysis, safe answers", ALL_KINDS)
METHODS = (SFT, REVISE, MISTAKES, OURS)


def examples(
    method: Method,
    lessons: Sequence[Lesson],
    revisions: Sequence[str],
    ordinary: Sequence[Ordinary],
    reminder_share: float,
    seed: int,
) -> list[Example]:
    """What a method learns. revisions: one per lesson, empty where none was usable."""
    if method.revised:
        lessons = [
            replace(lesson, safe_answer=text)
            for lesson, text in zip(lessons, revisions, strict=True)
            if text
        ]
    return build(
        lessons, ordinary, [], reminder_share=reminder_share, seed=seed, kinds=method.kinds
    )


async def revise(model: ReaderModel, lessons: Sequence[Lesson]) -> list[str]:
    """The base's answer to each flagged request after its own unguided critique of the flagged
    answer; empty where that critique finds no harm, or its critic finds some in the answer.
    """
    asked = [critique_of(lesson.messages, lesson.answer) for lesson in lessons]
    critiques = await model.answers(asked, adapter="base", max_tokens=_ANALYSIS_TOKENS)
    again = [
        revision_of(lesson.messages, lesson.answer, critique.removeprefix(_FLAGGED))
        for lesson, critique in zip(lessons, critiques, strict=True)
    ]
    said = await model.answers(again, adapter="base", max_tokens=_SAFE_TOKENS)
    revisions = [text.strip() for text in said]
    harms = await model.harm(
        [answered(lesson.messages, text) for lesson, text in zip(lessons, revisions, strict=True)],
        adapter="base",
    )
    return [
        text if critique.startswith(_FLAGGED) and harm < _HARMFUL else ""
        for critique, text, harm in zip(critiques, revisions, harms, strict=True)
    ]
