"""The methods that the paper's table compares, as datasets made from the same flags.

Owns what each method learns from a flag. All of them replay the same ordinary answers, and all
their safe answers are the model's own. How they are trained is lab.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guard.prompts import CritiqueStyle
from refine.critic import Critic
from refine.served import Model, answered
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
_FLAGGED, _HARMLESS = "Yes. ", "no"
"""How a critique in words begins."""


@dataclass(frozen=True)
class Method:
    """kinds: of the examples it learns. revised: whether its safe answers follow the model's own
    critique, which nobody told the verdict, instead of the guided analysis. preferences: whether
    safe and flagged answers are learned as pairs, with no other example."""

    name: str
    kinds: frozenset[Kind]
    revised: bool = False
    preferences: bool = False


SFT = Method("SFT on safe answers", frozenset({Kind.SAFE, Kind.HELP}))
REVISE = Method("critique-then-revise", SFT.kinds, revised=True)
MISTAKES = Method("mistake analysis alone", ALL_KINDS - {Kind.SAFE})
OURS = Method("mistake analysis, safe answers", ALL_KINDS)
DPO = Method("direct preference optimisation", frozenset(), preferences=True)
METHODS = (SFT, REVISE, MISTAKES, OURS)
"""Those that need nothing but the trainer of the refine loop; DPO needs TRL."""


def examples(
    method: Method,
    lessons: Sequence[Lesson],
    revisions: Sequence[str],
    ordinary: Sequence[Ordinary],
    reminder_share: float,
    seed: int,
    style: CritiqueStyle = CritiqueStyle.YES_NO,
) -> list[Example]:
    """What a method learns. revisions: one per lesson, empty where none was usable. style: in which
    the adapter is to be asked for verdicts."""
    if method.revised:
        lessons = [
            replace(lesson, safe_answer=text)
            for lesson, text in zip(lessons, revisions, strict=True)
            if text
        ]
    return build(
        lessons,
        ordinary,
        [],
        reminder_share=reminder_share,
        seed=seed,
        style=style,
        kinds=method.kinds,
    )


async def revise(model: Model, critic: Critic, lessons: Sequence[Lesson]) -> list[str]:
    """The base's answer to each flagged request after its own unguided critique of the flagged
    answer; empty where that critique finds no harm, or the critic finds some in the answer.
    """
    asked = [critique_of(lesson.messages, lesson.answer) for lesson in lessons]
    critiques = await model.answers(asked, adapter="base", max_tokens=_ANALYSIS_TOKENS)
    again = [
        revision_of(lesson.messages, lesson.answer, critique.removeprefix(_FLAGGED))
        for lesson, critique in zip(lessons, critiques, strict=True)
    ]
    said = await model.answers(again, adapter="base", max_tokens=_SAFE_TOKENS)
    revisions = [text.strip() for text in said]
    harmful = await critic.finds_harmful(
        model,
        [answered(lesson.messages, text) for lesson, text in zip(lessons, revisions, strict=True)],
    )
    return [
        text if not critique.lstrip().lower().startswith(_HARMLESS) and not harm else ""
        for critique, text, harm in zip(critiques, revisions, harmful, strict=True)
    ]
