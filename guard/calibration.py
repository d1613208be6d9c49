"""From what a model says of harm to how often it is right: the scale that belongs to one adapter.
Owns the formula; how it is fitted is refine/calibrate's, where it is kept store/calibrations.py's.
"""

import math
from dataclasses import dataclass

_LEAST = 1e-9


@dataclass(frozen=True)
class Calibration:
    """Platt's scaling of log-odds: `slope` is one over the temperature, `intercept` the bias."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, harm: float) -> float:
        """The calibrated probability, in [0, 1]; it keeps the order of verdicts."""
        if self == UNCALIBRATED:
            # To the digit: thresholds may be 0 and 1.
            return harm
        return probability(self.slope * log_odds(harm) + self.intercept)


UNCALIBRATED = Calibration()


def log_odds(share: float) -> float:
    """Of a probability, which is kept off 0 and 1 by a billionth."""
    kept = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(kept / (1 - kept))


def probability(odds: float) -> float:
    """Of log-odds of any size, without overflow."""
    return (1 + math.tanh(odds / 2)) / 2
