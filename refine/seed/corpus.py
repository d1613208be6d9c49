"""The seed corpus, for aligning, gating and reporting on a model without traffic. Owns the types of
its rows and how they are read. The rows are in data/; docs/seed.md says how they were written.
Trains nothing and knows no model.

Every row belongs to one split, and no topic occurs in two splits: `align` is trained on, `gate`
decides promotion, `report` is only measured.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

from guard.verdict import CATEGORIES
from refine.served import Message, user_turn

Split = Literal["align", "gate", "report"]
SPLITS: tuple[Split, ...] = ("align", "gate", "report")
Shape = Literal["plain", "long", "padded", "small_part"]
PairKind = Literal["written", "contrast", "plain"]
TextKind = Literal["short", "passage", "plain"]
_DATA = files("refine.seed").joinpath("data")
_TEXT_FOLDERS: Mapping[TextKind, str] = {"short": "texts", "passage": "passages"}


@dataclass(frozen=True)
class Answers:
    """Two written answers to a harmful request, of which only the second is harmful.

    refusal: declines, or redirects. compliance: complies, without usable detail. shape: where in
    the compliance the harm is. analysis: what is harmful in it and whom it harms; only in the align
    split.
    """

    refusal: str
    compliance: str
    shape: Shape
    analysis: str = ""


@dataclass(frozen=True)
class Pair:
    """A harmful request, and a harmless twin that looks similar.

    kind: written at length and close to its twin, a short contrast, or plain, as people type.
    Both are conversations that end with a user turn. answers: to the harmful request, if written.
    benign_answer: a helpful answer to the twin, or empty.
    """

    split: Split
    kind: PairKind
    topic: str
    category: str
    harmful: tuple[Message, ...]
    benign: tuple[Message, ...]
    answers: Answers | None
    benign_answer: str = ""


@dataclass(frozen=True)
class TextPair:
    """A text as people post it, harmful in one category, and a harmless twin.

    kind: short and close to its twin, a passage of some paragraphs, or plain, as people type.
    """

    split: Split
    kind: TextKind
    topic: str
    category: str
    harmful: str
    benign: str


@dataclass(frozen=True)
class OrdinaryRequest:
    """A request without any risk. kind: what it asks for, such as "code" or "advice"."""

    split: Split
    topic: str
    kind: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Wrapper:
    """A template around the last turn: a jailbreak around a request, or instructions to the critic
    around the judged text. family: its technique, which occurs in one split only."""

    split: Split
    family: str
    template: str

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Returns the conversation with its last turn in the wrapper."""
        *before, last = messages
        content = self.template.replace("{request}", last["content"])
        return (*before, {**last, "content": content})


@dataclass(frozen=True)
class Injection:
    """A text with which a user wants help. harmful: it instructs the model or the critic.

    kind: such as "mail" or "tool result". task: the user's request about the text.
    """

    split: Split
    topic: str
    kind: str
    task: str
    text: str
    harmful: bool


@dataclass(frozen=True)
class RuleText:
    """A criterion in words. about: a category, a kind of ordinary request, or an attack or refusal;
    rows of that are what it is true of (refine/seed/criteria.py)."""

    split: Split
    about: str
    description: str


@dataclass(frozen=True)
class Draft:
    """SmolLM2's own answer to a request of a pair, in some wrapper or none, with its label.

    harmful: whether the answer is. topic: of the request. category: of its harm; empty for a
    harmless twin.
    """

    split: Split
    topic: str
    category: str
    messages: tuple[Message, ...]
    answer: str
    harmful: bool


@cache
def pairs(split: Split) -> tuple[Pair, ...]:
    """Returns the pairs of every category: written at length, short contrasts, plain requests."""
    return tuple(_pairs(split))


def _pairs(split: Split) -> Iterator[Pair]:
    for category in CATEGORIES:
        for row in _rows(_DATA / "pairs" / _file_of(category), split):
            yield _pair(row, category, "written")
    for row in _rows(_DATA / "contrasts.jsonl", split):
        yield _pair(row, row["category"], "contrast")
    for category, row in _plain("request", split):
        yield _pair(row, category, "plain")


def _pair(row: Mapping[str, Any], category: str, kind: PairKind) -> Pair:
    answers = None
    if "shape" in row:
        names = ("refusal", "compliance", "shape", "analysis")
        answers = Answers(**{name: row[name] for name in names if name in row})
    return Pair(
        row["split"],
        kind,
        row["topic"],
        category,
        _messages(row["harmful"]),
        _messages(row["benign"]),
        answers,
        row.get("benign_answer", ""),
    )


@cache
def drafts(split: Split) -> tuple[Draft, ...]:
    """Returns a model's own answers with their labels; the report split has none."""
    return tuple(
        Draft(
            split,
            row["topic"],
            row["category"],
            _messages(row["messages"]),
            row["answer"],
            row["label"] == "harmful",
        )
        for row in _rows(_DATA / "drafts.jsonl", split)
    )


@cache
def texts(split: Split) -> tuple[TextPair, ...]:
    """Returns the free-standing texts of every category: short ones, passages, then plain ones."""
    return tuple(_texts(split))


def _texts(split: Split) -> Iterator[TextPair]:
    for kind, folder in _TEXT_FOLDERS.items():
        for category in CATEGORIES:
            for row in _rows(_DATA / folder / _file_of(category), split):
                yield _text(row, category, kind)
    for category, row in _plain("text", split):
        yield _text(row, category, "plain")


def _text(row: Mapping[str, Any], category: str, kind: TextKind) -> TextPair:
    return TextPair(row["split"], kind, row["topic"], category, row["harmful"], row["benign"])


@cache
def ordinary(split: Split) -> tuple[OrdinaryRequest, ...]:
    """Returns the ordinary requests."""
    return tuple(
        OrdinaryRequest(split, row["topic"], row["kind"], _messages(row["request"]))
        for row in _rows(_DATA / "ordinary.jsonl", split)
    )


@cache
def wrappers(split: Split) -> tuple[Wrapper, ...]:
    """Returns the jailbreak wrappers, three of each family."""
    return tuple(_wrappers("wrappers.jsonl", split))


def _wrappers(file: str, split: Split) -> Iterator[Wrapper]:
    for row in _rows(_DATA / file, split):
        yield Wrapper(split, row["family"], row["template"])


@cache
def injections(split: Split) -> tuple[Injection, ...]:
    """Returns texts with instructions in them, and texts that only look so."""
    return tuple(
        Injection(
            split, row["topic"], row["kind"], row["task"], row["text"], row["label"] == "harmful"
        )
        for row in _rows(_DATA / "injections.jsonl", split)
    )


@cache
def critic_injections(split: Split) -> tuple[Wrapper, ...]:
    """Returns instructions to the critic around a judged text; the report split has none."""
    return tuple(_wrappers("critic_injections.jsonl", split))


@cache
def criteria(split: Split) -> tuple[RuleText, ...]:
    """Returns criteria in words, several for each thing that they are about; the gate split has
    none."""
    return tuple(
        RuleText(split, row["about"], row["description"])
        for row in _rows(_DATA / "criteria.jsonl", split)
    )


@cache
def systems(split: Split) -> tuple[str, ...]:
    """Returns system prompts as operators write them."""
    return tuple(row["text"] for row in _rows(_DATA / "systems.jsonl", split))


def _plain(kind: str, split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields rows of that kind as people write online, with their categories."""
    for category in CATEGORIES:
        for row in _rows(_DATA / "plain" / _file_of(category), split):
            if row["kind"] == kind:
                yield category, row


def _rows(file: Traversable, split: Split) -> Iterator[Mapping[str, Any]]:
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            if row["split"] == split:
                yield row


def _file_of(category: str) -> str:
    return f"{category.replace('/', '-')}.jsonl"


def _messages(value: str | list[Message]) -> tuple[Message, ...]:
    return user_turn(value) if isinstance(value, str) else tuple(value)
