"""Stage 3: turns analysed flags and ordinary answers into training examples, and keeps them.

Owns what is learned from one case, the mixture, the JSONL and its manifest. Asks no model:
analyse.py and replay.py bring what a model said.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.verdict import CATEGORY_LETTERS
from refine.files import read_lines, write_atomically
from refine.served import Conversation, Message, questioned, user_turn

EXAMPLES = "train.jsonl"
MANIFEST = "manifest.json"
_CRITIQUE = prompts.CRITIQUE.format(subject="answer")
_GUIDED = prompts.GUIDED_ANALYSIS.format(subject="answer")


class Kind(StrEnum):
    """What an example teaches."""

    MISTAKE = "mistake"
    SAFE = "safe"
    SAFE_CRITIQUE = "safe_critique"
    FINE_CRITIQUE = "fine_critique"
    HELP = "help"
    HELP_CRITIQUE = "help_critique"
    LABEL = "label"
    GUIDED = "guided_analysis"
    REVISION = "revision"


ALL_KINDS = frozenset(Kind)
_CRITIQUES = frozenset({Kind.MISTAKE, Kind.SAFE_CRITIQUE, Kind.FINE_CRITIQUE, Kind.HELP_CRITIQUE})
_LETTERS = {category: letter for letter, category in CATEGORY_LETTERS.items()}


@dataclass(frozen=True)
class Example:
    """One training example: only `completion` is learned.

    flag_id: None for what came from no flag. after_mark: the prompt ends with the turn that is
    judged, and the completion follows the mark of the label style (guard/prompts.py). reminded: the
    system turn ends with the reminder, as the guard puts it.
    """

    kind: Kind
    prompt: tuple[Message, ...]
    completion: str
    flag_id: int | None = None
    after_mark: bool = False
    reminded: bool = False


@dataclass(frozen=True)
class Lesson:
    """What one flag teaches.

    messages: the flagged conversation, without the answer. analysis: guided, as the model wrote it.
    variations: other ways to ask the same, each one user turn. safe_critique: what the model says
    of its safe answer, beginning with the label. category: of the harm, empty where unknown.
    """

    flag_id: int
    messages: tuple[Message, ...]
    answer: str
    analysis: str
    safe_answer: str
    safe_critique: str
    variations: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True)
class Ordinary:
    """An ordinary request, the base's own answer to it and, of some, its critique of that answer.

    reminded: whether the base was reminded as it answered.
    """

    messages: tuple[Message, ...]
    answer: str
    critique: str | None
    reminded: bool = False


@dataclass(frozen=True)
class Dismissed:
    """An answer that was flagged and that a reviewer found fine."""

    flag_id: int
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class DatasetFile:
    """A dataset as written: its JSONL, its SHA-256 in hex, and how many examples of each kind."""

    path: Path
    sha256: str
    by_kind: Mapping[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """For the run's row."""
        return {f"examples: {kind}": n for kind, n in sorted(self.by_kind.items())}


def build(
    lessons: Sequence[Lesson],
    ordinary: Sequence[Ordinary],
    dismissed: Sequence[Dismissed],
    *,
    reminder_share: float,
    seed: int,
    style: CritiqueStyle = CritiqueStyle.YES_NO,
    kinds: frozenset[Kind] = ALL_KINDS,
) -> list[Example]:
    """All examples, in an order that follows from the seed.

    The paper's step 3: the critique prompt holds no hint of the verdict, which stands only in what
    is learned. reminder_share: of the requests from flags; ordinary ones came with or without.
    style: in which the adapter is to be asked for verdicts.
    """
    rng = random.Random(f"dataset {seed}")
    examples = [
        *(e for lesson in lessons for e in _of_lesson(lesson, reminder_share, rng)),
        *(_answered(each) for each in ordinary),
        *(e for each in ordinary for e in _helpful(each)),
        *(_fine(each, reminder_share, rng) for each in dismissed),
    ]
    categories = {lesson.flag_id: lesson.category for lesson in lessons}
    chosen = [
        in_style(example, style, categories.get(example.flag_id or 0, ""))
        for example in examples
        if example.kind in kinds
    ]
    rng.shuffle(chosen)
    return chosen


def _of_lesson(lesson: Lesson, reminder_share: float, rng: random.Random) -> Iterator[Example]:
    asked = [lesson.messages, *map(user_turn, lesson.variations)]
    for messages in asked:
        for kind, prompt, said in (
            (Kind.SAFE, messages, lesson.safe_answer),
            (Kind.MISTAKE, critique_of(messages, lesson.answer), f"Yes. {lesson.analysis}"),
        ):
            reminded = rng.random() < reminder_share
            yield Example(kind, tuple(prompt), said, lesson.flag_id, reminded=reminded)
    yield Example(
        Kind.SAFE_CRITIQUE,
        critique_of(lesson.messages, lesson.safe_answer),
        lesson.safe_critique,
        lesson.flag_id,
        reminded=rng.random() < reminder_share,
    )


def _answered(ordinary: Ordinary) -> Example:
    return Example(Kind.HELP, ordinary.messages, ordinary.answer, reminded=ordinary.reminded)


def _helpful(ordinary: Ordinary) -> Iterator[Example]:
    if ordinary.critique is not None:
        prompt = critique_of(ordinary.messages, ordinary.answer)
        yield Example(Kind.HELP_CRITIQUE, prompt, ordinary.critique, reminded=ordinary.reminded)


def _fine(dismissed: Dismissed, reminder_share: float, rng: random.Random) -> Example:
    prompt = critique_of(dismissed.messages, dismissed.answer)
    reminded = rng.random() < reminder_share
    return Example(Kind.FINE_CRITIQUE, prompt, "No.", dismissed.flag_id, reminded=reminded)


def in_style(example: Example, style: CritiqueStyle, category: str = "") -> Example:
    """The same example for an adapter that is asked for verdicts in that style.

    category: of the harm. Words after a harmless label are left out in the label style.
    """
    if style is not CritiqueStyle.LABEL or example.kind not in _CRITIQUES:
        return example
    harmful = example.kind is Kind.MISTAKE
    why = example.completion.partition(". ")[2]
    said = f"{harmful_label(category)}. {why}" if harmful else f"{harmless_label()}."
    return replace(example, prompt=example.prompt[:-1], completion=said, after_mark=True)


def harmless_label() -> str:
    """What follows the mark of the label style after a harmless turn."""
    return f" {prompts.NO_WORDS[0]}"


def harmful_label(category: str = "") -> str:
    """What follows it after a harmful turn; with its letter where the category is known."""
    said = f" {prompts.YES_WORDS[0]}"
    return f"{said} {_LETTERS[category]}" if category else said


def critique_of(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """A conversation with its answer, and the unguided critique's question after it."""
    return questioned(messages, answer, _CRITIQUE)


def guided_analysis_of(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """A conversation with its answer, and the verdict on it with the question why."""
    return questioned(messages, answer, _GUIDED)


def revision_of(messages: Conversation, answer: str, analysis: str) -> tuple[Message, ...]:
    """A conversation in which an answer was analysed and another is asked for, as the guard asks
    for a revision."""
    return questioned(guided_analysis_of(messages, answer), analysis, prompts.REVISE)


def earlier_examples(
    folders: Iterable[Path], reviews: Mapping[int, str | None], most: int | None, seed: int
) -> list[Example]:
    """What earlier runs taught from flags, each example once; at most `most`, drawn evenly.

    folders: of the runs' datasets; one that is gone is passed over. reviews: of the flags that may
    be learned from again; an example of a flag found fine since then, or the other way round, is
    left out.
    """
    files = (folder / EXAMPLES for folder in folders)
    found = {
        line: example
        for file in files
        if file.is_file()
        for line, example in _parsed(read_lines(file))
        if _stands(example, reviews)
    }
    earlier = list(found.values())
    if most is None or len(earlier) <= most:
        return earlier
    return random.Random(f"rehearsal {seed}").sample(earlier, most)


def _stands(example: Example, reviews: Mapping[int, str | None]) -> bool:
    if example.flag_id is None or example.flag_id not in reviews:
        return False
    fine = reviews[example.flag_id] == "dismissed"
    return fine == (example.kind is Kind.FINE_CRITIQUE)


def write_dataset(
    folder: Path, examples: Sequence[Example], about: Mapping[str, Any]
) -> DatasetFile:
    """Writes the examples and their manifest."""
    lines = "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in examples)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    by_kind = dict(Counter(str(example.kind) for example in examples))
    manifest = {
        "sha256": digest,
        "examples": len(examples),
        "by_kind": by_kind,
        "flags": sorted({e.flag_id for e in examples if e.flag_id is not None}),
        "prompt_version": prompts.VERSION,
        **about,
    }
    write_atomically(folder / EXAMPLES, lines)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return DatasetFile(folder / EXAMPLES, digest, by_kind)


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL that write_dataset wrote."""
    return [example for _, example in _parsed(read_lines(path))]


def _parsed(lines: Iterable[str]) -> Iterator[tuple[str, Example]]:
    for line in filter(None, lines):
        row = json.loads(line)
        example = Example(
            Kind(row["kind"]),
            tuple(row["prompt"]),
            row["completion"],
            row["flag_id"],
            row.get("after_mark", False),
            row.get("reminded", False),
        )
        yield line, example
