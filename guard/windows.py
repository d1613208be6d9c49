"""Where texts are cut for critiques: what is too long for one into overlapping windows, an answer
that is being written into growing ones. Judges nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """How many tokens of an answer being written a verdict waits for: `first`, then `growth` times
    as many each time, up to `most`."""

    first: int
    growth: float
    most: int

    def after(self, window: int) -> int:
        """The size that follows `window`."""
        return min(self.most, max(window, round(window * self.growth)))

    def ends(self, start: int, length: int) -> Iterator[int]:
        """Where windows end that are not over by `start`, short of `length`; all in tokens."""
        window = end = self.first
        while end < length:
            if end > start:
                yield end
            window = self.after(window)
            end += window
