"""Joins short texts of the corpus into longer ones, since the texts that people paste and models
write are long, and harm may be a small part of them. Owns how texts are joined; examples.py decides
which are learned.

Only texts of one split are joined, so that a joined one belongs to that split.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refine.seed import corpus
from refine.seed.corpus import Split

_MOST_PIECES = 7
_BREAKS = ("\n\n", "\n", " ")


@dataclass(frozen=True)
class JoinedText:
    """Several texts in one. category: of the harm in it, empty where there is none."""

    text: str
    category: str


def joined_texts(split: Split, rng: random.Random) -> Iterator[JoinedText]:
    """Two texts for each pair: the harmful text among harmless ones, and the harmless twin among as
    many others."""
    fillers = _harmless(split)
    for pair in corpus.texts(split):
        others = rng.sample(fillers, rng.randint(1, _MOST_PIECES))
        break_ = rng.choice(_BREAKS)
        yield JoinedText(_with(others, pair.harmful, break_, rng), pair.category)
        others = rng.sample(fillers, len(others))
        yield JoinedText(_with(others, pair.benign, break_, rng), "")


def _harmless(split: Split) -> list[str]:
    """Harmless texts and answers of every category."""
    answers = [pair.benign_answer for pair in corpus.pairs(split) if pair.benign_answer]
    return [*(pair.benign for pair in corpus.texts(split)), *answers]


def _with(others: Sequence[str], text: str, break_: str, rng: random.Random) -> str:
    place = rng.randint(0, len(others))
    return break_.join([*others[:place], text, *others[place:]])
