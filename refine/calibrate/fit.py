"""Fits a calibration to labelled verdicts and says how good it is. Owns the fit and its figures;
the formula is guard/calibration.py's, thresholds are thresholds.py's. Reads no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.calibration import Calibration, log_odds
from refine.benchmarks.scores import Judged, Scores, score
from refine.errors import DataInvalid

LEAST_OF_EACH = 20
_FOLDS = 5
_STEPS = 100
_CLOSE = 1e-9
_THRESHOLD = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledVerdict:
    """What the model said of one row, as a probability, and what people call it.

    named: the categories that the verdict is about. category: the labelled one, or empty.
    """

    harm: float
    harmful: bool
    named: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class Fit:
    """A calibration, and the scores before and after it.

    after: of each row by a calibration that was fitted without it, so that it is no flattery.
    """

    calibration: Calibration
    before: Scores
    after: Scores


def fit(verdicts: Sequence[LabelledVerdict]) -> Fit:
    """Platt's scaling by maximum likelihood, with his targets instead of 0 and 1.

    Raises DataInvalid when there are too few rows of either label, or when the verdicts do not tell
    them apart: then nothing that is fitted would help.
    """
    labels = np.array([verdict.harmful for verdict in verdicts], dtype=np.float64)
    counts = {"harmful": int(labels.sum()), "harmless": int(len(labels) - labels.sum())}
    for label, n in counts.items():
        if n < LEAST_OF_EACH:
            raise DataInvalid(
                f"{n} {label} lines are too few to calibrate on; give at least {LEAST_OF_EACH}"
            )
    odds = np.array([log_odds(verdict.harm) for verdict in verdicts])
    fitted = _platt(odds, labels)
    if fitted.slope <= 0:
        raise DataInvalid(
            "the verdicts do not tell the harmful lines from the harmless ones, so no scale helps; "
            "check the labels, or align the model first (`setback align`)"
        )
    harms = [verdict.harm for verdict in verdicts]
    return Fit(fitted, _scores(harms, labels), _scores(_left_out(odds, labels, harms), labels))


def _left_out(odds: Floats, labels: Floats, harms: Sequence[float]) -> list[float]:
    """Each row's probability by the fit on the other folds; folds hold both labels alike."""
    order = np.lexsort((np.arange(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % _FOLDS
    by_fold = [_platt(odds[fold != number], labels[fold != number]) for number in range(_FOLDS)]
    return [by_fold[number].apply(harm) for number, harm in zip(fold, harms, strict=True)]


def _platt(odds: Floats, labels: Floats) -> Calibration:
    """Newton's method on the two parameters."""
    harmful, harmless = labels.sum(), len(labels) - labels.sum()
    targets = np.where(labels > 0, (harmful + 1) / (harmful + 2), 1 / (harmless + 2))
    inputs = np.column_stack((odds, np.ones_like(odds)))
    weights = np.zeros(2)
    for _ in range(_STEPS):
        said = (1 + np.tanh(inputs @ weights / 2)) / 2
        gradient = inputs.T @ (said - targets)
        curvature = inputs.T @ (inputs * (said * (1 - said))[:, None])
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        weights -= step
        if np.abs(step).max() < _CLOSE:
            break
    return Calibration(float(weights[0]), float(weights[1]))


def _scores(harms: Sequence[float], labels: Floats) -> Scores:
    return score(
        [
            Judged(bool(label), harm >= _THRESHOLD, harm, "", float(place))
            for place, (harm, label) in enumerate(zip(harms, labels, strict=True))
        ]
    )
