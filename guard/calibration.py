"""Turns a model's score for harm into a calibrated probability. Each adapter has its own scales.
Owns the formula. Does not fit it (refine/calibrate) or store it (store/calibrations.py).
"""

import math
from dataclasses import dataclass

_EPSILON = 1e-9


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of log-odds: `slope` is the inverse temperature, `intercept` the bias."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, harm: float) -> float:
        """Returns the calibrated probability, in [0, 1]. The order of verdicts stays the same."""
        if self == UNCALIBRATED:
            # Exactly, since thresholds may be 0 or 1.
            return harm
        return probability(self.slope * log_odds(harm) + self.intercept)


UNCALIBRATED = Calibration()


@dataclass(frozen=True)
class Scales:
    """The calibrations of one adapter: of answers in their conversations, and of free-standing
    texts. A model is surer of harm in a text that somebody wrote than in an answer of its own."""

    answers: Calibration = UNCALIBRATED
    texts: Calibration = UNCALIBRATED

    def of(self, *, is_answer: bool) -> Calibration:
        """Returns the calibration of either kind."""
        return self.answers if is_answer else self.texts


UNSCALED = Scales()


def log_odds(p: float) -> float:
    """Returns the log-odds of a probability, which is clipped to keep them finite."""
    clipped = min(max(p, _EPSILON), 1 - _EPSILON)
    return math.log(clipped / (1 - clipped))


def probability(odds: float) -> float:
    """Returns the probability for log-odds of any size, without overflow."""
    return (1 + math.tanh(odds / 2)) / 2
