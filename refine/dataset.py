"""Stage 3: turns analysed flags and ordinary answers into training examples, and keeps them.

Owns what is learned from one case, the mixture, the JSONL and its manifest. Asks no model:
analyse.py and replay.py bring what a model said.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from guard import prompts
from refine.files import write_atomically
from refine.served import Conversation, Message

EXAMPLES = "train.jsonl"
MANIFEST = "manifest.json"
_CRITIQUE = prompts.CRITIQUE.format(subject="answer")


class Kind(StrEnum):
    """What an example teaches."""

    MISTAKE = "mistake"
    SAFE = "safe"
    SAFE_CRITIQUE = "safe_critique"
    FINE_CRITIQUE = "fine_critique"
    HELP = "help"
    HELP_CRITIQUE = "help_critique"


ALL_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class Example:
    """One training example: only `completion` is learned. flag_id: None for ordinary requests."""

    kind: Kind
    prompt: tuple[Message, ...]
    completion: str
    flag_id: int | None = None


@dataclass(frozen=True)
class Lesson:
    """What one flag teaches.

    messages: the flagged conversation, without the answer. analysis: guided, as the model wrote it.
    variations: other ways to ask the same, each one user turn. safe_critique: what the model says
    of its safe answer, beginning with the label.
    """

    flag_id: int
    messages: tuple[Message, ...]
    answer: str
    analysis: str
    safe_answer: str
    safe_critique: str
    variations: tuple[str, ...]


@dataclass(frozen=True)
class Ordinary:
    """An ordinary request, the base's own answer to it and its critique of that answer."""

    messages: tuple[Message, ...]
    answer: str
    critique: str


@dataclass(frozen=True)
class Dismissed:
    """An answer that was flagged and that a reviewer found fine."""

    flag_id: int
    messages: tuple[Message, ...]
    answer: str


def build(
    lessons: Sequence[Lesson],
    ordinary: Sequence[Ordinary],
    dismissed: Sequence[Dismissed],
    *,
    reminder_share: float,
    seed: int,
    kinds: frozenset[Kind] = ALL_KINDS,
) -> list[Example]:
    """All examples, in an order that follows from the seed.

    The paper's step 3: the critique prompt holds no hint of the verdict, which stands only in what
    is learned. reminder_share: of the requests from flags; ordinary ones came with or without.
    """
    rng = random.Random(f"dataset {seed}")
    examples = [
        *(e for lesson in lessons for e in _of_lesson(lesson, reminder_share, rng)),
        *(e for each in ordinary for e in _of_ordinary(each)),
        *(_fine(each, reminder_share, rng) for each in dismissed),
    ]
    chosen = [example for example in examples if example.kind in kinds]
    rng.shuffle(chosen)
    return chosen


def _of_lesson(lesson: Lesson, reminder_share: float, rng: random.Random) -> Iterator[Example]:
    asked = [lesson.messages, *(({"role": "user", "content": v},) for v in lesson.variations)]
    for messages in asked:
        prompt = reminded(messages, reminder_share, rng)
        yield Example(Kind.SAFE, prompt, lesson.safe_answer, lesson.flag_id)
        prompt = reminded(messages, reminder_share, rng)
        said = f"Yes. {lesson.analysis}"
        yield Example(Kind.MISTAKE, critique_of(prompt, lesson.answer), said, lesson.flag_id)
    prompt = critique_of(reminded(lesson.messages, reminder_share, rng), lesson.safe_answer)
    yield Example(Kind.SAFE_CRITIQUE, prompt, lesson.safe_critique, lesson.flag_id)


def _of_ordinary(ordinary: Ordinary) -> Iterator[Example]:
    yield Example(Kind.HELP, ordinary.messages, ordinary.answer)
    prompt = critique_of(ordinary.messages, ordinary.answer)
    yield Example(Kind.HELP_CRITIQUE, prompt, ordinary.critique)


def _fine(dismissed: Dismissed, reminder_share: float, rng: random.Random) -> Example:
    prompt = critique_of(reminded(dismissed.messages, reminder_share, rng), dismissed.answer)
    return Example(Kind.FINE_CRITIQUE, prompt, "No.", dismissed.flag_id)


def critique_of(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """A conversation with its answer, and the unguided critique's question after it."""
    return (
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": _CRITIQUE},
    )


def reminded(messages: Conversation, share: float, rng: random.Random) -> tuple[Message, ...]:
    """The conversation, in `share` of the cases with the reminder as the guard puts it."""
    *before, last = messages
    if rng.random() >= share:
        return tuple(messages)
    return (*before, {**last, "content": f"{last['content']}\n\n{prompts.REMINDER}"})


def rehearsed(earlier: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most `most` examples of earlier runs, drawn evenly."""
    if len(earlier) <= most:
        return list(earlier)
    return random.Random(f"rehearsal {seed}").sample(list(earlier), most)


def write_dataset(folder: Path, examples: Sequence[Example], about: Mapping[str, Any]) -> str:
    """Writes the examples and their manifest; returns the SHA-256 of the examples' file."""
    lines = "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in examples)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    manifest = {
        "sha256": digest,
        "examples": len(examples),
        "by_kind": dict(Counter(example.kind for example in examples)),
        "flags": sorted({e.flag_id for e in examples if e.flag_id is not None}),
        "prompt_version": prompts.VERSION,
        **about,
    }
    write_atomically(folder / EXAMPLES, lines)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return digest


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL that write_dataset wrote."""
    return list(_parsed(path.read_text().splitlines()))


def _parsed(lines: Iterable[str]) -> Iterator[Example]:
    for line in lines:
        row = json.loads(line)
        yield Example(Kind(row["kind"]), tuple(row["prompt"]), row["completion"], row["flag_id"])
