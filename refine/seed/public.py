"""Which rows of public sets the shipped adapter learned from besides the seed corpus: the first
part of its recipe (docs/align.md). Owns the choice, and our own labels of rows whose published ones
set another bar; none of the sets is part of the project.

    python -m refine.seed.public FOLDER > public.jsonl
    setback align --data public.jsonl

FOLDER holds the sets as `NAME.jsonl.gz`, each line with `text`, or `request` and perhaps `answer`,
`label` and perhaps `kind`, or `chosen` and `rejected`. Rows are drawn by a fixed seed.
"""

import gzip
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from guard.verdict import CATEGORY_LETTERS

Row = dict[str, Any]
_FIELDS = ("text", "request", "answer", "label")
_HARMLESS = "-"
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Choice:
    """Rows of one set, with their published labels.

    name: of its file. kinds: any, if none are named. harmful, harmless: how many of each at most.
    answered: whether rows with an answer are wanted, or those without, or both (None).
    """

    name: str
    harmful: int
    harmless: int
    kinds: tuple[str, ...] = ()
    answered: bool | None = None

    def wants(self, row: Row) -> bool:
        """Whether a row may be drawn, whatever its label."""
        of_kind = not self.kinds or row.get("kind") in self.kinds
        return of_kind and self.answered in (None, "answer" in row)


CHOICES = (
    Choice("gptfuzz_pairs", 1400, 1400),
    Choice("harmful_requests", 2000, 0),
    Choice("benign_requests", 0, 1309),
    Choice("ordinary_requests", 0, 2000, answered=True),
    Choice("ordinary_requests", 0, 1500, answered=False),
    Choice("toxigen_texts", 371, 297),
    # "offensive" is a low bar: most of it is swearing among friends.
    Choice("davidson_texts", 1427, 1500, ("hate", "neither")),
)


def chosen(folder: Path, seed: int = 0) -> Iterator[Row]:
    """The rows of every choice and those with labels of ours, as `setback align --data` reads
    them."""
    for number, choice in enumerate(CHOICES):
        rng = random.Random(f"public {seed} {number}")
        rows = [row for row in _rows(folder, choice.name) if choice.wants(row)]
        for label, most in (("harmful", choice.harmful), ("harmless", choice.harmless)):
            found = [row for row in rows if row["label"] == label]
            for row in rng.sample(found, min(most, len(found))):
                yield {name: row[name] for name in _FIELDS if name in row}
    yield from _relabelled(folder)


def _relabelled(folder: Path) -> Iterator[Row]:
    """By set, by part of a row, and by the row's number: a category's letter, or `-`."""
    labels = json.loads(files("refine.seed").joinpath("relabelled.json").read_text("utf-8"))
    for name, parts in labels.items():
        rows = list(_rows(folder, name))
        for part, by_number in parts.items():
            for number, letter in by_number.items():
                content = _content(rows[int(number)], part)
                if content:
                    yield {**content, **_label(letter)}


def _content(row: Row, part: str) -> Row | None:
    """What was labelled: the row itself, or one of the conversations in it."""
    if part == "row":
        return {name: row[name] for name in ("text", "request", "answer") if name in row}
    if part == "request":
        turns = _turns(row["chosen"])
        # What is asked later means nothing without what came before.
        return {"request": turns[0]["content"]} if len(turns) == 2 else None
    *messages, answer = turns = _turns(row[part])
    # A transcript of whoever spoke twice in a row cannot be told from its speakers.
    in_turns = [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    told = in_turns and all(turn["content"] for turn in turns)
    return {"messages": messages, "answer": answer["content"]} if told else None


def _turns(transcript: str) -> list[Mapping[str, str]]:
    _, *parts = _TURN.split(transcript)
    return [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _label(letter: str) -> Row:
    if letter == _HARMLESS:
        return {"label": "harmless"}
    return {"label": "harmful", "category": CATEGORY_LETTERS[letter]}


def _rows(folder: Path, name: str) -> Iterator[Row]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)


def main(arguments: Sequence[str]) -> None:
    """One argument: the folder."""
    for row in chosen(Path(arguments[0])):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
