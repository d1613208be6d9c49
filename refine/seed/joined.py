"""Joins short texts of the corpus into longer ones, because real texts are long and harm may be a
small part of them. Owns how texts are joined. Does not choose which are trained on (examples.py).

Only texts of one split are joined, so that a joined text belongs to that split.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refine.seed import corpus
from refine.seed.corpus import Split

_MAX_FILLERS = 7
_SEPARATORS = ("\n\n", "\n", " ")


@dataclass(frozen=True)
class JoinedText:
    """Several texts in one. category: of the harm in it, empty if there is none."""

    text: str
    category: str


def joined_texts(split: Split, rng: random.Random) -> Iterator[JoinedText]:
    """Yields two texts for each pair: the harmful text among harmless ones, and its harmless twin
    among as many."""
    fillers = _harmless(split)
    for pair in corpus.texts(split):
        others = rng.sample(fillers, rng.randint(1, _MAX_FILLERS))
        separator = rng.choice(_SEPARATORS)
        yield JoinedText(_with(others, pair.harmful, separator, rng), pair.category)
        others = rng.sample(fillers, len(others))
        yield JoinedText(_with(others, pair.benign, separator, rng), "")


def _harmless(split: Split) -> list[str]:
    """Returns harmless texts and answers of every category."""
    answers = [pair.benign_answer for pair in corpus.pairs(split) if pair.benign_answer]
    return [*(pair.benign for pair in corpus.texts(split)), *answers]


def _with(others: Sequence[str], text: str, separator: str, rng: random.Random) -> str:
    position = rng.randint(0, len(others))
    return separator.join([*others[:position], text, *others[position:]])
