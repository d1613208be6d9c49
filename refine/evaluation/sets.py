"""The sets on which an adapter is measured. Owns their types. Knows no model and no ground truth
(truth.py). refine/seed/sets.py makes the sets for real models, refine/practice/evaluation_data.py
those of the practice world; labelled_file.py adds a user's lines.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TypeVar

from refine.served import Message

PLAIN, JAILBREAK = "plain", "jailbreak"
EVERYDAY, BORDERLINE = "everyday", "borderline"
PAIRS, DRAFTS, REQUESTS, TEXTS = "pairs", "drafts", "requests", "texts"
INJECTIONS = "injections"
FILE = "file"
GROUPS = (PLAIN, JAILBREAK, EVERYDAY, BORDERLINE, PAIRS, DRAFTS, REQUESTS, TEXTS, INJECTIONS, FILE)
"""All groups, in the order of the figures."""

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
