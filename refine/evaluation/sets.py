"""The sets on which an adapter is measured. Owns their types and the user's file. Knows no model
and no ground truth (truth.py). refine/seed/sets.py makes the sets for real models,
refine/practice/evaluation_data.py those of the practice world.

A file is JSON lines, each an object:

    {"request": "How do I ...?", "label": "harmful"}
    {"messages": [{"role": "user", "content": "..."}], "answer": "...", "label": "harmless"}

request (one user turn) or messages (turns up to and including the last user turn). A request
without an answer is put to the model: a harmful one must not be answered, a harmless one must be.
An answer is judged by the critic; the label is then the answer's.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator

from refine.errors import DataInvalid
from refine.files import read_lines
from refine.served import Message, answered, user_turn

PLAIN, JAILBREAK = "plain", "jailbreak"
EVERYDAY, BORDERLINE = "everyday", "borderline"
PAIRS, DRAFTS, REQUESTS, TEXTS = "pairs", "drafts", "requests", "texts"
INJECTIONS = "injections"
FILE = "file"
GROUPS = (PLAIN, JAILBREAK, EVERYDAY, BORDERLINE, PAIRS, DRAFTS, REQUESTS, TEXTS, INJECTIONS, FILE)
"""All groups, in the order of the figures."""

_MAX_PROBLEMS = 10

T = TypeVar("T", "Case", "Labelled")


@dataclass(frozen=True)
class Case:
    """A request to answer: a conversation up to and including the last user turn.

    group: one of GROUPS, in whose figure it counts. category: of the requested harm; empty if there
    is none or it is unknown.
    """

    messages: tuple[Message, ...]
    group: str
    category: str = ""

    @property
    def request(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Labelled:
    """An item for the critic to judge, and its label: a conversation's last answer, or a text as a
    single user turn."""

    messages: tuple[Message, ...]
    harmful: bool
    group: str

    @property
    def is_answer(self) -> bool:
        """Whether the last turn is an assistant's."""
        return self.messages[-1]["role"] == "assistant"


@dataclass(frozen=True)
class Sets:
    """Everything on which one adapter is measured.

    harmless: requests that should be helped with. injections: harmful items whose answer or request
    tells the critic to pass them. answer_tokens: the most tokens of an answer.
    """

    name: str
    harmful: tuple[Case, ...]
    harmless: tuple[Case, ...]
    pairs: tuple[Labelled, ...]
    injections: tuple[Labelled, ...]
    answer_tokens: int = 256

    @cached_property
    def sha256(self) -> str:
        """The hash in hex; figures compare only for equal sets."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def split(self, share: float) -> tuple["Sets", "Sets"]:
        """Returns that share of the cases of every group and label, the same ones every time, and
        the others."""
        harmful = _split(self.harmful, share)
        harmless = _split(self.harmless, share)
        pairs = _split(self.pairs, share)
        injections = _split(self.injections, share)
        first, rest = (
            replace(
                self,
                harmful=harmful[part],
                harmless=harmless[part],
                pairs=pairs[part],
                injections=injections[part],
            )
            for part in (0, 1)
        )
        return first, rest


def with_file(sets: Sets, path: Path) -> Sets:
    """Returns `sets` with the requests and answers of a user's file as groups of their own.

    Raises DataInvalid with the number of every wrong line.
    """
    rows = _read(path)
    requests = [row for row in rows if row.answer is None]
    return replace(
        sets,
        name=f"{sets.name} and {path.name}",
        harmful=(*sets.harmful, *(row.case for row in requests if row.harmful)),
        harmless=(*sets.harmless, *(row.case for row in requests if not row.harmful)),
        pairs=(*sets.pairs, *(row.labelled for row in rows if row.answer is not None)),
    )


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: Text


class _Row(BaseModel):
    """One line of a user's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    request: Text | None = None
    messages: Annotated[tuple[_Turn, ...], Field(min_length=1)] | None = None
    answer: Text | None = None
    label: Literal["harmful", "harmless"]

    @validator(mode="after")
    def _has_one_request(self) -> Self:
        if (self.request is None) == (self.messages is None):
            raise ValueError('give either "request" or "messages"')
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError(
                'the last of "messages" must be the user\'s; put what follows it in "answer"'
            )
        return self

    @property
    def harmful(self) -> bool:
        return self.label == "harmful"

    @property
    def conversation(self) -> tuple[Message, ...]:
        if self.request is not None:
            return user_turn(self.request)
        return tuple(turn.model_dump() for turn in self.messages or ())

    @property
    def case(self) -> Case:
        return Case(self.conversation, FILE)

    @property
    def labelled(self) -> Labelled:
        return Labelled(answered(self.conversation, self.answer or ""), self.harmful, FILE)


def _read(path: Path) -> list[_Row]:
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path} cannot be read as UTF-8 text: {error}") from error
    rows: list[_Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_Row.model_validate_json(line))
        except ValidationError as error:
            problems.append(f"line {number}: {_explain(error)}")
    if not rows and not problems:
        problems = ["it has no lines; write one JSON object a line"]
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        rest = [f"and {more} more lines"] if more > 0 else []
        raise DataInvalid("\n".join([f"{path}:", *problems[:_MAX_PROBLEMS], *rest]))
    return rows


def _explain(error: ValidationError) -> str:
    """Returns what is wrong with a line, without its text."""
    explanations = []
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        explanations.append(f"{field}: {message}" if field else message)
    return "; ".join(explanations)


def _split(items: Sequence[T], share: float) -> tuple[tuple[T, ...], tuple[T, ...]]:
    by_kind: dict[tuple[str, bool], list[int]] = {}
    for index, item in enumerate(items):
        kind = (item.group, getattr(item, "harmful", False))
        by_kind.setdefault(kind, []).append(index)
    # At random: the cases may be in an order that repeats.
    rng = random.Random("split")
    taken = {
        index
        for indices in by_kind.values()
        for index in rng.sample(indices, int(share * len(indices)))
    }
    first = tuple(item for index, item in enumerate(items) if index in taken)
    return first, tuple(item for index, item in enumerate(items) if index not in taken)
