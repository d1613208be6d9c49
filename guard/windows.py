"""Cuts what is too long for one critique into overlapping windows. Judges nothing."""

from collections.abc import Iterator, Sequence

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
