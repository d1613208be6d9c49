"""The data types of a benchmark: labelled rows and their set. Owns the hash of a set and the sample
drawn from it. Reads no file (formats.py) and asks no server (public_api.py).
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

from refine.served import Message, answered, user_turn

Kind = Literal["text", "request", "answer"]
"""What is judged: a free-standing text, a user's request, or the last answer of a conversation."""


@dataclass(frozen=True)
class BenchmarkRow:
    """An item to judge and its label.

    line: in its file. messages: a text or a request is one user turn; an answer is a conversation
    that ends with it. group: the set's own grouping, or empty. category: the kind of harm, one of
    OpenAI's 13 names, or empty if unknown. criterion: a criterion of a policy that applies, or
    empty.
    """

    line: int
    kind: Kind
    messages: tuple[Message, ...]
    harmful: bool
    group: str = ""
    category: str = ""
    criterion: str = ""


@dataclass(frozen=True)
class BenchmarkSet:
    """All rows of one file. file: its path. left_out: the number of unused rows, by reason."""

    format: str
    file: str
    rows: tuple[BenchmarkRow, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The set's name in reports."""
        return f"{self.format} ({self.file})"

    @cached_property
    def sha256(self) -> str:
        """The hash of all rows in hex, under which verdicts are stored."""
        rows = [asdict(row) for row in self.rows]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def sample(self, limit: int | None) -> tuple[int, ...]:
        """Returns the indices of `limit` rows, drawn by a fixed seed, stratified by label.

        Both labels occur if the set has both and the limit is at least two. Without a limit, all
        rows are returned.
        """
        if limit is None or limit >= len(self.rows):
            return tuple(range(len(self.rows)))
        indices = {
            label: [index for index, row in enumerate(self.rows) if row.harmful is label]
            for label in (True, False)
        }
        harmful = _share(len(indices[True]), len(indices[False]), limit)
        rng = random.Random(f"benchmark sample {self.sha256}")
        drawn = rng.sample(indices[True], harmful) + rng.sample(indices[False], limit - harmful)
        return tuple(sorted(drawn))


def _share(harmful: int, harmless: int, limit: int) -> int:
    """Returns how many of `limit` rows are harmful."""
    share = round(limit * harmful / (harmful + harmless))
    minimum = 1 if harmful and limit > 1 else 0
    maximum = limit - 1 if harmless and limit > 1 else limit
    return min(max(share, minimum, limit - harmless), maximum, harmful)


def request(line: int, text: str, *, harmful: bool, group: str = "") -> BenchmarkRow:
    """Returns a row with a user's request."""
    return BenchmarkRow(line, "request", user_turn(text), harmful, group)


def text(line: int, content: str, *, harmful: bool, group: str = "") -> BenchmarkRow:
    """Returns a row with a free-standing text."""
    return BenchmarkRow(line, "text", user_turn(content), harmful, group)


def answer(
    line: int, conversation: str | Sequence[Message], reply: str, *, harmful: bool, group: str = ""
) -> BenchmarkRow:
    """Returns a row with a request or a conversation, and the answer to it."""
    turns = user_turn(conversation) if isinstance(conversation, str) else tuple(conversation)
    return BenchmarkRow(line, "answer", answered(turns, reply), harmful, group)
