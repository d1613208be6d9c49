"""Where texts are cut for critiques. A text that is too long for one critique is cut into
overlapping windows, an answer that is being generated into growing windows, and a long or doubtful
answer into prefixes. Owns these cuts. Does not judge.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DEFAULT_VERDICT_TOKENS = 256
_CLOSE_CUT_TOKENS, _CLOSEST_CUT_TOKENS = 16, 4
_MIN_CLOSE_CUTS, _MAX_CLOSE_CUTS = 4, 64
OVERLAP = 0.25
"""Share of a window that the next one repeats, so that each sentence is whole in one of them."""


def overlapping_windows(token_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yields slices of at most `size` tokens that overlap and cover every token."""
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
    """Where an answer is judged while it is generated. All sizes are in tokens.

    first: the size of a stream's first window. growth: the factor by which later windows grow.
    limit: the most new text that one verdict may cover, since harmless text hides earlier harm.
    """

    first: int
    growth: float
    limit: int

    def after(self, window: int) -> int:
        """Returns the size of the stream's window after one of size `window`."""
        return min(self.limit, max(window, round(window * self.growth)))

    def cuts(self, judged: int, length: int) -> Iterator[int]:
        """Yields the lengths at which a verdict is needed so that none covers more than `limit`.

        judged: tokens that earlier verdicts cover. length: the answer's length so far.
        """
        return iter(range(judged + self.limit, length, self.limit))

    def close_cuts(self, length: int) -> Iterator[int]:
        """As `cuts`, for an answer in doubt: short steps, at least a few of them and at most
        _MAX_CLOSE_CUTS."""
        shortest = min(_CLOSE_CUT_TOKENS, math.ceil(length / _MIN_CLOSE_CUTS))
        step = max(_CLOSEST_CUT_TOKENS, shortest, math.ceil(length / _MAX_CLOSE_CUTS))
        return iter(range(step, length, step))
