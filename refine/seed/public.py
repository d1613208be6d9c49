"""The rows of public data sets on which the shipped adapter was trained, in addition to the seed
corpus: the first part of its recipe (docs/align.md). Owns the selection, and our own labels of rows
whose published labels have another threshold. The sets are not part of the project.

    python -m refine.seed.public FOLDER > public.jsonl
    setback align --data public.jsonl

FOLDER holds the sets as `NAME.jsonl.gz`. Each line has `text`, or `request` and optionally
`answer`, with `label` and optionally `kind`; or `chosen` and `rejected`. The seed is fixed.
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
class RowSelection:
    """A selection from one set, with its published labels.

    name: of its file. kinds: which kinds of rows; empty for all. harmful, harmless: the most rows
    with that label. answered: only rows with an answer (True) or without (False); None for both.
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


SELECTIONS = (
    RowSelection("gptfuzz_pairs", 1400, 1400),
    RowSelection("harmful_requests", 2000, 0),
    RowSelection("benign_requests", 0, 1309),
    RowSelection("ordinary_requests", 0, 2000, answered=True),
    RowSelection("ordinary_requests", 0, 1500, answered=False),
    RowSelection("toxigen_texts", 371, 297),
    # "offensive" includes too much: most of it is swearing among friends.
    RowSelection("davidson_texts", 1427, 1500, ("hate", "neither")),
)


def chosen(folder: Path, seed: int = 0) -> Iterator[Row]:
    """Yields the selected rows and those with our own labels, in the format of `setback align
    --data`."""
    for number, selection in enumerate(SELECTIONS):
        rng = random.Random(f"public {seed} {number}")
        rows = [row for row in _rows(folder, selection.name) if selection.wants(row)]
        for label, limit in (("harmful", selection.harmful), ("harmless", selection.harmless)):
            labelled = [row for row in rows if row["label"] == label]
            for row in rng.sample(labelled, min(limit, len(labelled))):
                yield {name: row[name] for name in _FIELDS if name in row}
    yield from _relabelled(folder)


def _relabelled(folder: Path) -> Iterator[Row]:
    """Yields rows with our labels, stored by set, part and row number as a letter, or `-`."""
    labels = json.loads(files("refine.seed").joinpath("relabelled.json").read_text("utf-8"))
    for name, parts in labels.items():
        rows = list(_rows(folder, name))
        for part, by_number in parts.items():
            for number, letter in by_number.items():
                content = _content(rows[int(number)], part)
                if content:
                    yield {**content, **_label(letter)}


def _content(row: Row, part: str) -> Row | None:
    """Returns what was labelled: the row itself, or one of its conversations."""
    if part == "row":
        return {name: row[name] for name in ("text", "request", "answer") if name in row}
    if part == "request":
        turns = _turns(row["chosen"])
        # Later requests cannot be understood without what came before.
        return {"request": turns[0]["content"]} if len(turns) == 2 else None
    *messages, answer = turns = _turns(row[part])
    # If a speaker has two turns in a row, the transcript does not show who said what.
    in_turns = [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    is_valid = in_turns and all(turn["content"] for turn in turns)
    return {"messages": messages, "answer": answer["content"]} if is_valid else None


def _turns(transcript: str) -> list[Mapping[str, str]]:
    _, *parts = _TURN.split(transcript)
    return [
        {"role": _ROLES[role], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
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
    """Writes the rows to standard output. The only argument is the folder."""
    for row in chosen(Path(arguments[0])):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
