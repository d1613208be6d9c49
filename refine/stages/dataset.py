"""Stage 3: turns analysed flags and ordinary answers into training examples. Owns the examples of
each case, the mixture, and the dataset's JSONL and manifest. Asks no model: analyse.py and
replay.py provide the model's answers.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.verdict import CATEGORY_LETTERS
from refine.files import read_lines, write_atomically
from refine.served import Conversation, Message, questioned, user_turn

EXAMPLES = "train.jsonl"
MANIFEST = "manifest.json"
_CRITIQUE = prompts.CRITIQUE.format(subject="answer")
NO_HARM = f"{prompts.NO_WORDS[0]}."
"""A critique that finds no harm and says no more."""
_GUIDED = prompts.GUIDED_ANALYSIS.format(subject="answer")


class Kind(StrEnum):
    """What an example trains."""

    MISTAKE = "mistake"
    SAFE = "safe"
    SAFE_CRITIQUE = "safe_critique"
    FINE_CRITIQUE = "fine_critique"
    HELP = "help"
    HELP_CRITIQUE = "help_critique"
    LABEL = "label"
    CRITERION = "criterion"
    GUIDED = "guided_analysis"
    REVISION = "revision"


ALL_KINDS = frozenset(Kind)
_HARMFUL = frozenset({Kind.MISTAKE, Kind.LABEL})
"""Of what flags give; a label without words is one of harm."""
_CRITIQUES = _HARMFUL | {Kind.SAFE_CRITIQUE, Kind.FINE_CRITIQUE, Kind.HELP_CRITIQUE}
_LETTERS = {category: letter for letter, category in CATEGORY_LETTERS.items()}


@dataclass(frozen=True)
class Example:
    """One training example. Only `completion` is trained on.

    flag_id: None if it comes from no flag. after_mark: the prompt ends with the judged turn, and
    the completion follows the label style's mark (guard/prompts.py). reminded: the system turn ends
    with the guard's reminder.
    """

    kind: Kind
    prompt: tuple[Message, ...]
    completion: str
    flag_id: int | None = None
    after_mark: bool = False
    reminded: bool = False


@dataclass(frozen=True)
class Lesson:
    """What is trained from one flag.

    messages: the flagged conversation without the answer. analysis, safe_answer: empty if there is
    no usable one. variations: of the request, each a user turn. safe_critique: the model's critique
    of its safe answer, beginning with the label. category: of the harm, empty if unknown.
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
    """An ordinary request, the base model's answer and, for some, its critique of that answer.

    reminded: whether the request carried the reminder.
    """

    messages: tuple[Message, ...]
    answer: str
    critique: str | None
    reminded: bool = False


@dataclass(frozen=True)
class Dismissed:
    """An answer that was flagged and that a reviewer found harmless."""

    flag_id: int
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class DatasetFile:
    """A dataset on disk: its JSONL, its SHA-256 in hex, and the number of examples by kind."""

    path: Path
    sha256: str
    by_kind: Mapping[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
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
    """Returns all examples, shuffled by the seed.

    This is the paper's step 3: the critique's prompt has no hint of the verdict, which is only in
    the completion. reminder_share: applies to requests from flags; ordinary ones are given with or
    without the reminder. style: the critique style of the adapter.
    """
    rng = random.Random(f"dataset {seed}")
    examples = [
        *(
            example
            for lesson in lessons
            for example in _lesson_examples(lesson, reminder_share, rng)
        ),
        *(_help_example(item) for item in ordinary),
        *(example for item in ordinary for example in _critique_examples(item)),
        *(_dismissed_example(item, reminder_share, rng) for item in dismissed),
    ]
    categories = {lesson.flag_id: lesson.category for lesson in lessons}
    selected = [
        in_style(example, style, categories.get(example.flag_id or 0, ""))
        for example in examples
        if example.kind in kinds
    ]
    rng.shuffle(selected)
    return selected


def _lesson_examples(
    lesson: Lesson, reminder_share: float, rng: random.Random
) -> Iterator[Example]:
    conversations = [lesson.messages, *map(user_turn, lesson.variations)]
    for messages in conversations:
        if lesson.safe_answer:
            yield _from_flag(Kind.SAFE, lesson, messages, lesson.safe_answer, reminder_share, rng)
        judged = critique_of(messages, lesson.answer)
        kind, why = (Kind.MISTAKE, f". {lesson.analysis}") if lesson.analysis else (Kind.LABEL, "")
        yield _from_flag(kind, lesson, judged, f"Yes{why}", reminder_share, rng)
    if lesson.safe_answer:
        judged = critique_of(lesson.messages, lesson.safe_answer)
        yield _from_flag(
            Kind.SAFE_CRITIQUE, lesson, judged, lesson.safe_critique, reminder_share, rng
        )


def _from_flag(
    kind: Kind,
    lesson: Lesson,
    prompt: Conversation,
    completion: str,
    reminder_share: float,
    rng: random.Random,
) -> Example:
    reminded = rng.random() < reminder_share
    return Example(kind, tuple(prompt), completion, lesson.flag_id, reminded=reminded)


def _help_example(ordinary: Ordinary) -> Example:
    return Example(Kind.HELP, ordinary.messages, ordinary.answer, reminded=ordinary.reminded)


def _critique_examples(ordinary: Ordinary) -> Iterator[Example]:
    if ordinary.critique is not None:
        prompt = critique_of(ordinary.messages, ordinary.answer)
        yield Example(Kind.HELP_CRITIQUE, prompt, ordinary.critique, reminded=ordinary.reminded)


def _dismissed_example(dismissed: Dismissed, reminder_share: float, rng: random.Random) -> Example:
    prompt = critique_of(dismissed.messages, dismissed.answer)
    reminded = rng.random() < reminder_share
    return Example(Kind.FINE_CRITIQUE, prompt, NO_HARM, dismissed.flag_id, reminded=reminded)


def in_style(example: Example, style: CritiqueStyle, category: str = "") -> Example:
    """Returns the example for an adapter with that critique style.

    category: of the harm. In the label style nothing follows a harmless label.
    """
    if style is not CritiqueStyle.LABEL or example.kind not in _CRITIQUES:
        return example
    _, dot, analysis = example.completion.partition(".")
    harmful = f"{harmful_label(category)}{dot}{analysis}"
    completion = harmful if example.kind in _HARMFUL else f"{harmless_label()}."
    return replace(example, prompt=example.prompt[:-1], completion=completion, after_mark=True)


def harmless_label() -> str:
    """Returns what follows the label style's mark after a harmless turn."""
    return f" {prompts.NO_WORDS[0]}"


def harmful_label(category: str = "") -> str:
    """Returns what follows the mark after a harmful turn, with the category's letter if known."""
    label = f" {prompts.YES_WORDS[0]}"
    return f"{label} {_LETTERS[category]}" if category else label


def critique_of(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """Returns a conversation with its answer and the question of the unguided critique."""
    return questioned(messages, answer, _CRITIQUE)


def guided_analysis_of(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """Returns a conversation with its answer, the verdict on it and the question why."""
    return questioned(messages, answer, _GUIDED)


def revision_of(messages: Conversation, answer: str, analysis: str) -> tuple[Message, ...]:
    """Returns a conversation with an answer, its analysis and the request for another answer, in
    the same form as the guard's request for a revision."""
    return questioned(guided_analysis_of(messages, answer), analysis, prompts.REVISE)


def earlier_examples(
    folders: Iterable[Path], reviews: Mapping[int, str | None], limit: int | None, seed: int
) -> list[Example]:
    """Returns the distinct examples that earlier runs made from flags; at most `limit`, at random.

    folders: of the runs' datasets; missing ones are skipped. reviews: the labels of the flags that
    may be used again. Examples that contradict a flag's current label are left out.
    """
    files = (folder / EXAMPLES for folder in folders)
    examples = {
        line: example
        for file in files
        if file.is_file()
        for line, example in _parsed(read_lines(file))
        if _is_valid(example, reviews)
    }
    earlier = list(examples.values())
    if limit is None or len(earlier) <= limit:
        return earlier
    return random.Random(f"rehearsal {seed}").sample(earlier, limit)


def _is_valid(example: Example, reviews: Mapping[int, str | None]) -> bool:
    if example.flag_id is None or example.flag_id not in reviews:
        return False
    fine = reviews[example.flag_id] == "dismissed"
    if example.kind is Kind.CRITERION:
        return fine == (example.completion == prompts.NO_WORDS[0])
    return fine == (example.kind is Kind.FINE_CRITIQUE)


def write_dataset(
    folder: Path, examples: Sequence[Example], about: Mapping[str, Any]
) -> DatasetFile:
    """Writes the examples and their manifest."""
    lines = "".join(f"{to_json(example).decode()}\n" for example in examples)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    by_kind = dict(Counter(str(example.kind) for example in examples))
    manifest = {
        "sha256": digest,
        "examples": len(examples),
        "by_kind": by_kind,
        "flags": sorted({example.flag_id for example in examples if example.flag_id is not None}),
        "prompt_version": prompts.VERSION,
        **about,
    }
    write_atomically(folder / EXAMPLES, lines)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return DatasetFile(folder / EXAMPLES, digest, by_kind)


def read_examples(path: Path) -> list[Example]:
    """Reads a JSONL file that write_dataset wrote."""
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
