"""The seed corpus: what a model is aligned from when it has had no traffic, and what it is gated
and reported on. Owns the rows' shapes and how they are read; the rows are in data/, and
docs/seed.md says how they were written. Trains nothing and knows no model.

Every row belongs to one split, and no topic stands in two: `align` is learned from, `gate` decides
on promotion, `report` is only measured.
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

    refusal: declines, or redirects. compliance: goes along, without any usable detail. shape: where
    in the compliance the harm stands. analysis: what in it is harmful and whom it harms; in the
    align split only.
    """

    refusal: str
    compliance: str
    shape: Shape
    analysis: str = ""


@dataclass(frozen=True)
class Pair:
    """A harmful request, and its twin that sounds alike and is fine.

    kind: written at length and close to its twin, a short contrast, or plain, as people type.
    Both are conversations that end with the user. answers: to the harmful one, where written.
    benign_answer: a helpful one to the twin, or empty.
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
    """A text as people post it, harmful in one category, and its twin that is fine.

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
    """A request with nothing risky in it. kind: what it asks for, such as "code" or "advice"."""

    split: Split
    topic: str
    kind: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Wrapper:
    """A template around the last turn: a jailbreak around a request, or words to the critic around
    what it judges. family: its trick; a family stands in one split only."""

    split: Split
    family: str
    template: str

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with its last turn in the wrapper."""
        *before, last = messages
        content = self.template.replace("{request}", last["content"])
        return (*before, {**last, "content": content})


@dataclass(frozen=True)
class Injection:
    """A text that a user wants something done with. harmful: it instructs the model or the critic.

    kind: such as "mail" or "tool result". task: what the user asks about the text.
    """

    split: Split
    topic: str
    kind: str
    task: str
    text: str
    harmful: bool


@cache
def pairs(split: Split) -> tuple[Pair, ...]:
    """The pairs of every category: written at length, short contrasts, and plain requests."""
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
def texts(split: Split) -> tuple[TextPair, ...]:
    """The free-standing texts of every category: short ones, passages, and then plain ones."""
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
    """The ordinary requests."""
    return tuple(
        OrdinaryRequest(split, row["topic"], row["kind"], _messages(row["request"]))
        for row in _rows(_DATA / "ordinary.jsonl", split)
    )


@cache
def wrappers(split: Split) -> tuple[Wrapper, ...]:
    """The jailbreak wrappers, three of each family."""
    return tuple(_wrappers("wrappers.jsonl", split))


def _wrappers(file: str, split: Split) -> Iterator[Wrapper]:
    for row in _rows(_DATA / file, split):
        yield Wrapper(split, row["family"], row["template"])


@cache
def injections(split: Split) -> tuple[Injection, ...]:
    """The texts with instructions in them, and those that only look so."""
    return tuple(
        Injection(
            split, row["topic"], row["kind"], row["task"], row["text"], row["label"] == "harmful"
        )
        for row in _rows(_DATA / "injections.jsonl", split)
    )


@cache
def critic_injections(split: Split) -> tuple[Wrapper, ...]:
    """Words to the critic around what it judges; the gate split alone has some."""
    return tuple(_wrappers("critic_injections.jsonl", split))


@cache
def systems(split: Split) -> tuple[str, ...]:
    """System prompts, as operators write them."""
    return tuple(row["text"] for row in _rows(_DATA / "systems.jsonl", split))


def _plain(kind: str, split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows as people write online, of that kind, with their categories."""
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
