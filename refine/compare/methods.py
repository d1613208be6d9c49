"""The methods that the paper's table compares, as datasets from the same flags. Owns each method's
examples of a flag. All methods replay the same ordinary answers, and all their safe answers are the
model's own. Does not train (lab.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guard.prompts import CritiqueStyle
from refine.critic import Critic
from refine.served import GenerationParams, Model, answered
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
    """kinds: of the method's examples. revised: its safe answers follow the model's own critique
    without the verdict, instead of the guided analysis. preferences: it is trained on pairs of a
    safe and a flagged answer, and on nothing else."""

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
    """Returns a method's examples. revisions: one per lesson, empty if there is no usable one.
    style: of the verdicts that the adapter is trained to give."""
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
    """Returns the base model's answer to each flagged request after its own unguided critique of
    the flagged answer; empty if the critique finds no harm, or the critic flags the new answer.
    """
    conversations = [critique_of(lesson.messages, lesson.answer) for lesson in lessons]
    critiques = await model.answers(
        conversations, adapter="base", params=GenerationParams(max_tokens=_ANALYSIS_TOKENS)
    )
    again = [
        revision_of(lesson.messages, lesson.answer, critique.removeprefix(_FLAGGED))
        for lesson, critique in zip(lessons, critiques, strict=True)
    ]
    answers = await model.answers(
        again, adapter="base", params=GenerationParams(max_tokens=_SAFE_TOKENS)
    )
    revisions = [text.strip() for text in answers]
    harmful = await critic.finds_harmful(
        model,
        [answered(lesson.messages, text) for lesson, text in zip(lessons, revisions, strict=True)],
    )
    return [
        text if not critique.lstrip().lower().startswith(_HARMLESS) and not harm else ""
        for critique, text, harm in zip(critiques, revisions, harmful, strict=True)
    ]
