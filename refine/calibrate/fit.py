"""Fits a calibration to labelled verdicts. Owns the fit and its quality figures. Does not define
the formula (guard/calibration.py) or thresholds (thresholds.py). Reads no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.calibration import Calibration, Scales, log_odds
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

    named: the categories of the verdict. category: the labelled one, or empty. is_answer: whether
    it is on an answer in its conversation, instead of a free-standing text.
    """

    harm: float
    harmful: bool
    named: tuple[str, ...] = ()
    category: str = ""
    is_answer: bool = True


@dataclass(frozen=True)
class Fit:
    """The calibrations, and the scores before and after them.

    after: cross-validated, so that each example is scored by a fit without it.
    """

    scales: Scales
    before: Scores
    after: Scores

    def apply(self, verdict: LabelledVerdict) -> float:
        """Returns the calibrated probability of a verdict."""
        return self.scales.of(is_answer=verdict.is_answer).apply(verdict.harm)


@dataclass(frozen=True)
class _FitOfKind:
    """A calibration, and the examples' probabilities by fits without them."""

    calibration: Calibration
    unseen: Sequence[float]


def fit(verdicts: Sequence[LabelledVerdict]) -> Fit:
    """Fits Platt scaling to the answers and to the texts, by maximum likelihood. A kind with too
    few examples of either label has the scale of all examples.

    Raises DataInvalid when there are too few examples of either label, or when the verdicts do not
    separate them, so that no scaling would help.
    """
    answers = [index for index, verdict in enumerate(verdicts) if verdict.is_answer]
    texts = [index for index, verdict in enumerate(verdicts) if not verdict.is_answer]
    of_all: _FitOfKind | None = None
    unseen = [0.0] * len(verdicts)
    calibrations = []
    for indices in (answers, texts):
        try:
            fitted = _fit_of_kind([verdicts[index] for index in indices])
            places: Sequence[int] = range(len(indices))
        except DataInvalid:
            fitted = of_all = of_all or _fit_of_kind(verdicts)
            places = indices
        calibrations.append(fitted.calibration)
        for index, place in zip(indices, places, strict=True):
            unseen[index] = fitted.unseen[place]
    labels = np.array([verdict.harmful for verdict in verdicts], dtype=np.float64)
    before = _scores([verdict.harm for verdict in verdicts], labels)
    return Fit(Scales(*calibrations), before, _scores(unseen, labels))


def _fit_of_kind(verdicts: Sequence[LabelledVerdict]) -> _FitOfKind:
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
    return _FitOfKind(calibration, _cross_validated(odds, labels, harms))


def _cross_validated(odds: Floats, labels: Floats, harms: Sequence[float]) -> list[float]:
    """Returns each example's probability by a fit on the other folds, stratified by label."""
    order = np.lexsort((np.arange(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % _FOLDS
    by_fold = [_platt(odds[fold != index], labels[fold != index]) for index in range(_FOLDS)]
    return [by_fold[index].apply(harm) for index, harm in zip(fold, harms, strict=True)]


def _platt(odds: Floats, labels: Floats) -> Calibration:
    """Fits the two parameters by Newton's method, with Platt's targets instead of 0 and 1."""
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
