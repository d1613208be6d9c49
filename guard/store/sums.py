"""Counts that add up. Owns their arithmetic. Knows no table."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Sums:
    """Sums that add up by field. Its subclasses are frozen dataclasses of numbers or of sums."""

    def __add__(self, other: Self) -> Self:
        mine, others = vars(self), vars(other)
        return type(self)(**{name: mine[name] + others[name] for name in mine})

    def __sub__(self, other: Self) -> Self:
        mine, others = vars(self), vars(other)
        return type(self)(**{name: mine[name] - others[name] for name in mine})
