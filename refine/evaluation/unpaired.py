"""Two groups of different cases compared: the difference of their shares and the ratio of their
means. Owns these intervals. Decides nothing. For the same cases see paired.py.

The difference has Newcombe's interval for independent shares (Statistics in Medicine 17, 873-890,
1998, method 10), the paired one without correlation.
"""

import math
from dataclasses import dataclass

from refine.evaluation.paired import Difference, newcombe


@dataclass(frozen=True)
class Sample:
    """Measured values. total: their sum. squares: the sum of their squares."""

    n: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """The mean; NaN without values."""
        return self.total / self.n if self.n else math.nan

    @property
    def relative_error(self) -> float:
        """The standard error of the mean, as a share of the mean. Needs two values above 0."""
        variance = max(0.0, self.squares - self.n * self.mean**2) / (self.n - 1)
        return math.sqrt(variance / self.n) / self.mean


@dataclass(frozen=True)
class Ratio:
    """after / before, with its interval."""

    value: float
    low: float
    high: float


def unpaired_difference(before: tuple[int, int], after: tuple[int, int], z: float) -> Difference:
    """Returns the difference of two shares, each given as hits and cases. Without cases on a side
    nothing is known of it: (-1, 1).

    z: the quantile of the two-sided interval.
    """
    if not before[1] or not after[1]:
        return Difference(math.nan, -1.0, 1.0)
    return newcombe(before, after, 0.0, z)


def mean_ratio(before: Sample, after: Sample, z: float) -> Ratio:
    """Returns the ratio of two means of positive values, with the interval of the logarithm's
    normal approximation. With fewer than two values on a side nothing is known: (0, infinity)."""
    if min(before.n, after.n) < 2 or min(before.total, after.total) <= 0:
        return Ratio(math.nan, 0.0, math.inf)
    value = after.mean / before.mean
    width = math.exp(z * math.hypot(before.relative_error, after.relative_error))
    return Ratio(value, value / width, value * width)
