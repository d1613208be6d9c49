"""Where texts are cut for critiques: what is too long for one into overlapping windows, an answer
that is being written into growing ones, and a long or doubtful answer into its beginnings. Judges
nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DEFAULT_VERDICT_TOKENS = 256
_CLOSE = 16
_MOST_CLOSE_CUTS = 64
OVERLAP = 0.25
"""Share of a window that the next one repeats, so that no sentence is judged only in halves."""


def windows(token_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive slices of at most `size` tokens that cover every token; at least one slice."""
    if len(token_ids) <= size:
        yield token_ids
        return
    step = max(1, size - int(size * OVERLAP))
    start = 0
    while start + size < len(token_ids):
        yield token_ids[start : start + size]
        start += step
    yield token_ids[len(token_ids) - size :]


@dataclass(frozen=True)
class Windows:
    """How an answer is divided for verdicts; all in tokens.

    first: what the first verdict on a stream waits for. growth: how many times as many each later
    one waits for. most: the longest stretch of new text that one verdict is trusted with, streamed
    or not, since what follows harm hides it.
    """

    first: int
    growth: float
    most: int

    def after(self, window: int) -> int:
        """The size of the stream's window that follows one of size `window`."""
        return min(self.most, max(window, round(window * self.growth)))

    def cuts(self, judged: int, length: int) -> Iterator[int]:
        """Where an answer must also be judged so that no verdict covers more than `most`.

        judged: tokens that verdicts cover already. length: up to which it is judged now.
        """
        return iter(range(judged + self.most, length, self.most))

    def close_cuts(self, length: int) -> Iterator[int]:
        """The same for an answer in doubt: short stretches, but not more of them than a round of
        reads bears."""
        step = max(_CLOSE, math.ceil(length / _MOST_CLOSE_CUTS))
        return iter(range(step, length, step))
