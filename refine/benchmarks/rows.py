"""The values of a benchmark: rows with a label, and the set they make. Owns the hash of a set and
the sample drawn from it; reads no file (formats.py) and asks no server (public_api.py).
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
"""What is judged: a free-standing text, the request of a user, or the last answer to one."""


@dataclass(frozen=True)
class BenchmarkRow:
    """Something to judge, and whether people called it harmful.

    line: where it stands in its file. messages: a text or a request is one user turn; an answer is
    a conversation that ends with it. group: what the set files it under, or empty. category: the
    kind of harm, one of ours, or empty where it is not known.
    """

    line: int
    kind: Kind
    messages: tuple[Message, ...]
    harmful: bool
    group: str = ""
    category: str = ""


@dataclass(frozen=True)
class BenchmarkSet:
    """All rows of one file. file: its path. left_out: how many were not used, by reason."""

    format: str
    file: str
    rows: tuple[BenchmarkRow, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.format} ({self.file})"

    @cached_property
    def sha256(self) -> str:
        """In hex, of every row; verdicts are kept under it."""
        rows = [asdict(row) for row in self.rows]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def sample(self, limit: int | None) -> tuple[int, ...]:
        """The places of `limit` rows, drawn by a fixed seed, with the labels in proportion.

        Both labels are drawn where both exist and the limit is at least two. All rows without a
        limit.
        """
        if limit is None or limit >= len(self.rows):
            return tuple(range(len(self.rows)))
        places = {
            label: [place for place, row in enumerate(self.rows) if row.harmful is label]
            for label in (True, False)
        }
        harmful = _share(len(places[True]), len(places[False]), limit)
        rng = random.Random(f"benchmark sample {self.sha256}")
        drawn = rng.sample(places[True], harmful) + rng.sample(places[False], limit - harmful)
        return tuple(sorted(drawn))


def _share(harmful: int, harmless: int, limit: int) -> int:
    """How many of `limit` rows are harmful ones."""
    share = round(limit * harmful / (harmful + harmless))
    least = 1 if harmful and limit > 1 else 0
    most = limit - 1 if harmless and limit > 1 else limit
    return min(max(share, least, limit - harmless), most, harmful)


def request(line: int, text: str, *, harmful: bool, group: str = "") -> BenchmarkRow:
    """A row that holds the request of a user."""
    return BenchmarkRow(line, "request", user_turn(text), harmful, group)


def text(line: int, content: str, *, harmful: bool, group: str = "") -> BenchmarkRow:
    """A row that holds a free-standing text."""
    return BenchmarkRow(line, "text", user_turn(content), harmful, group)


def answer(
    line: int, before: str | Sequence[Message], reply: str, *, harmful: bool, group: str = ""
) -> BenchmarkRow:
    """A row that holds a request, or a conversation, and the answer to it."""
    turns = user_turn(before) if isinstance(before, str) else tuple(before)
    return BenchmarkRow(line, "answer", answered(turns, reply), harmful, group)
