"""The difference of two shares measured on the same cases. Owns its confidence interval. Decides
nothing.

The interval is Newcombe's for paired shares (Statistics in Medicine 17, 2635-2650, 1998, method
10): Wilson's intervals of both shares, combined with their correlation. It keeps its level for
few cases and for shares near 0 and 1, which the gate has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refine.evaluation.figures import wilson

Z = 1.96
"""The quantile of a two-sided 95% interval."""


@dataclass(frozen=True)
class Difference:
    """after - before, in [-1, 1], with its interval."""

    value: float
    low: float
    high: float

    @property
    def negated(self) -> "Difference":
        """before - after."""
        return Difference(-self.value, -self.high, -self.low)


def paired_difference(before: Sequence[bool], after: Sequence[bool], z: float = Z) -> Difference:
    """Returns the difference over the same cases in the same order. Needs at least one case.

    z: the quantile of the two-sided interval.
    """
    n = len(before)
    if not n or len(after) != n:
        raise ValueError("paired shares need the same cases, and at least one")
    both = sum(b and a for b, a in zip(before, after, strict=True))
    b, a = sum(before), sum(after)
    correlation = _correlation(both, a - both, b - both, n - a - b + both)
    return newcombe((b, n), (a, n), correlation, z)


def newcombe(
    before: tuple[int, int], after: tuple[int, int], correlation: float, z: float
) -> Difference:
    """Returns the difference of two shares, each given as hits and cases, of which there is at
    least one. correlation: of the outcomes of the same case; 0 for different cases."""
    low_b, high_b = wilson(*before, z)
    low_a, high_a = wilson(*after, z)
    b, a = before[0] / before[1], after[0] / after[1]

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * correlation * up * down + down * down))

    return Difference(
        a - b, a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)
    )


def mean_difference(one: Difference, other: Difference) -> Difference:
    """Returns the mean of two differences over different cases; adds their intervals in squares."""
    value = (one.value + other.value) / 2
    down = math.hypot(one.value - one.low, other.value - other.low) / 2
    up = math.hypot(one.high - one.value, other.high - other.value) / 2
    return Difference(value, value - down, value + up)


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Returns phi of the two-by-two table, with Newcombe's continuity correction."""
    n = both + gained + lost + neither
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if not margins:
        return 0.0
    cross = float(both * neither - gained * lost)
    if cross > 0:
        cross = max(0.0, cross - n / 2)
    return cross / math.sqrt(margins)
