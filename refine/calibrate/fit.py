"""Fits a calibration to labelled verdicts. Owns the fit and its quality figures. Does not define
the formula (guard/calibration.py) or thresholds (thresholds.py). Reads no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.calibration import Calibration, log_odds
from refine.benchmarks.scores import Judged, Scores, score
from refine.errors import DataInvalid

MIN_PER_LABEL = 20
_FOLDS = 5
_MAX_STEPS = 100
_TOLERANCE = 1e-9
_THRESHOLD = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledVerdict:
    """The model's verdict on one labelled example, as a probability.

    named: the categories of the verdict. category: the labelled one, or empty.
    """

    harm: float
    harmful: bool
    named: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class Fit:
    """A calibration, and the scores before and after it.

    after: cross-validated, so that each example is scored by a fit without it.
    """

    calibration: Calibration
    before: Scores
    after: Scores


def fit(verdicts: Sequence[LabelledVerdict]) -> Fit:
    """Fits Platt scaling by maximum likelihood, with Platt's targets instead of 0 and 1.

    Raises DataInvalid when there are too few examples of either label, or when the verdicts do not
    separate them, so that no scaling would help.
    """
    labels = np.array([verdict.harmful for verdict in verdicts], dtype=np.float64)
    counts = {"harmful": int(labels.sum()), "harmless": int(len(labels) - labels.sum())}
    for label, n in counts.items():
        if n < MIN_PER_LABEL:
            raise DataInvalid(
                f"{n} {label} lines are too few to calibrate on; give at least {MIN_PER_LABEL}"
            )
    odds = np.array([log_odds(verdict.harm) for verdict in verdicts])
    calibration = _platt(odds, labels)
    if calibration.slope <= 0:
        raise DataInvalid(
            "the verdicts do not separate harmful from harmless lines, so no scale helps; "
            "check the labels, or align the model first (`setback align`)"
        )
    harms = [verdict.harm for verdict in verdicts]
    return Fit(
        calibration, _scores(harms, labels), _scores(_cross_validated(odds, labels, harms), labels)
    )


def _cross_validated(odds: Floats, labels: Floats, harms: Sequence[float]) -> list[float]:
    """Returns each example's probability by a fit on the other folds, stratified by label."""
    order = np.lexsort((np.arange(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % _FOLDS
    by_fold = [_platt(odds[fold != index], labels[fold != index]) for index in range(_FOLDS)]
    return [by_fold[index].apply(harm) for index, harm in zip(fold, harms, strict=True)]


def _platt(odds: Floats, labels: Floats) -> Calibration:
    """Fits the two parameters by Newton's method."""
    harmful, harmless = labels.sum(), len(labels) - labels.sum()
    targets = np.where(labels > 0, (harmful + 1) / (harmful + 2), 1 / (harmless + 2))
    inputs = np.column_stack((odds, np.ones_like(odds)))
    weights = np.zeros(2)
    for _ in range(_MAX_STEPS):
        predicted = (1 + np.tanh(inputs @ weights / 2)) / 2
        gradient = inputs.T @ (predicted - targets)
        curvature = inputs.T @ (inputs * (predicted * (1 - predicted))[:, None])
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        weights -= step
        if np.abs(step).max() < _TOLERANCE:
            break
    return Calibration(float(weights[0]), float(weights[1]))


def _scores(harms: Sequence[float], labels: Floats) -> Scores:
    return score(
        [
            Judged(bool(label), harm >= _THRESHOLD, harm, "", float(index))
            for index, (harm, label) in enumerate(zip(harms, labels, strict=True))
        ]
    )
