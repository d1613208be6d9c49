"""Which rows of public sets the shipped adapter learned from besides the seed corpus: the first
part of its recipe (docs/align.md). Owns the choice; none of the sets is part of the project.

    python -m refine.seed.public FOLDER > public.jsonl
    setback align --data public.jsonl

FOLDER holds the sets as `NAME.jsonl.gz`, each line with `text`, or `request` and perhaps `answer`,
`label` and perhaps `kind`. Rows are drawn by a fixed seed.
"""

import gzip
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_FIELDS = ("text", "request", "answer", "label")


@dataclass(frozen=True)
class Choice:
    """Rows of one set.

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
    Choice("gptfuzz_pairs", 1881, 1881),
    # Kinds whose labels agree with the 13 categories; the others are about expertise and risk.
    Choice("diasafety_pairs", 300, 300, ("Offending User",)),
    Choice("diasafety_pairs", 300, 300, ("Biased Opinion",)),
    Choice("diasafety_pairs", 300, 300, ("Toxicity Agreement",)),
    Choice("harmful_requests", 2000, 0),
    Choice("benign_requests", 0, 1309),
    Choice("ordinary_requests", 0, 2000, answered=True),
    Choice("ordinary_requests", 0, 1500, answered=False),
    Choice("toxigen_texts", 371, 297),
    # "offensive" is a low bar: most of it is swearing among friends.
    Choice("davidson_texts", 1427, 1500, ("hate", "neither")),
    # Nearly all of them are labelled harmful, many for a word such as "stupid".
    Choice("toxic_spans_texts", 500, 485),
)


def chosen(folder: Path, seed: int = 0) -> Iterator[Row]:
    """The rows of every choice, as `setback align --data` reads them."""
    for number, choice in enumerate(CHOICES):
        rng = random.Random(f"public {seed} {number}")
        rows = [row for row in _rows(folder / f"{choice.name}.jsonl.gz") if choice.wants(row)]
        for label, most in (("harmful", choice.harmful), ("harmless", choice.harmless)):
            found = [row for row in rows if row["label"] == label]
            for row in rng.sample(found, min(most, len(found))):
                yield {name: row[name] for name in _FIELDS if name in row}


def _rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)


def main(arguments: Sequence[str]) -> None:
    """One argument: the folder."""
    for row in chosen(Path(arguments[0])):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
