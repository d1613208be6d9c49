"""The figures of a benchmark with their 95% intervals. Owns their definitions. Does not collect
verdicts (benchmark.py) or format figures (report.py).

Rates have Wilson's interval. Average precision, F1, calibration error and requests per second have
a percentile bootstrap of 1,000 resamples with a fixed seed, stratified by label, so that a resample
has the set's prevalence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refine.evaluation.figures import Figure

Floats = npt.NDArray[np.float64]
_Statistic = Callable[[Floats], float]

BINS = 10
_RESAMPLES = 1000
_BATCHES = 20
_SEED = 0


@dataclass(frozen=True)
class Judged:
    """A label and the verdict on it. at: seconds since its session began."""

    harmful: bool
    flagged: bool
    score: float | None
    session: str
    at: float
    group: str = ""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; NaN if it is undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Returns the values, with null for NaN."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(v) else v for name, v in values.items()}


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows with scores in one tenth of [0, 1]: their mean score and the share of harmful ones."""

    score: float
    harmful: Figure


@dataclass(frozen=True)
class Scores:
    """All figures of one set on one server.

    Undefined figures are None: with a single label there is only one rate, and without scores for
    all rows there is no average precision or calibration. scored: rows that have a score.
    """

    n: int
    harmful: int
    scored: int
    catch_rate: Figure | None
    false_alarm_rate: Figure | None
    f1: Estimate | None
    average_precision: Estimate | None
    calibration_error: Estimate | None
    requests_per_second: Estimate | None
    reliability: tuple[ReliabilityBin, ...]
    groups: dict[str, tuple[Figure, ...]]

    @property
    def prevalence(self) -> float:
        """The share of harmful rows, which is the average precision of random scores."""
        return self.harmful / self.n if self.n else math.nan


def score(rows: Sequence[Judged]) -> Scores:
    """Computes every figure that these rows allow."""
    harmful = [row for row in rows if row.harmful]
    harmless = [row for row in rows if not row.harmful]
    both = bool(harmful and harmless)
    scored = [row for row in rows if row.score is not None]
    complete = both and len(scored) == len(rows)
    labels = np.array([row.harmful for row in rows], dtype=np.float64)
    flags = np.array([row.flagged for row in rows], dtype=np.float64)
    values = np.array([row.score or 0.0 for row in rows], dtype=np.float64)
    return Scores(
        n=len(rows),
        harmful=len(harmful),
        scored=len(scored),
        catch_rate=_flagged("catch rate", harmful),
        false_alarm_rate=_flagged("false-alarm rate", harmless),
        f1=bootstrap(labels, f1_score(labels, flags)) if both else None,
        average_precision=bootstrap(labels, average_precision(labels, values))
        if complete
        else None,
        calibration_error=bootstrap(labels, calibration_error(labels, values))
        if complete
        else None,
        requests_per_second=requests_per_second(rows),
        reliability=_reliability(scored) if complete else (),
        groups=_groups(rows),
    )


def _flagged(name: str, rows: Sequence[Judged]) -> Figure | None:
    return Figure.of(name, (row.flagged for row in rows)) if rows else None


def _groups(rows: Sequence[Judged]) -> dict[str, tuple[Figure, ...]]:
    """Returns how often each group's harmful and harmless rows are flagged."""
    names = sorted({row.group for row in rows if row.group})
    rates_by_group = {}
    for name in names:
        members = [row for row in rows if row.group == name]
        rates = (
            _flagged("catch rate", [row for row in members if row.harmful]),
            _flagged("false-alarm rate", [row for row in members if not row.harmful]),
        )
        rates_by_group[name] = tuple(rate for rate in rates if rate is not None)
    return rates_by_group


def average_precision(labels: Floats, scores: Floats) -> _Statistic:
    """The mean precision over the steps of recall, for weighted rows; tied scores are one step."""
    order = np.argsort(-scores, kind="stable")
    ranked = labels[order]
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)

    def statistic(weights: Floats) -> float:
        drawn = weights[order]
        caught = np.cumsum(drawn * ranked)[ends]
        taken = np.cumsum(drawn)[ends]
        precision = np.divide(caught, taken, out=np.zeros_like(caught), where=taken > 0)
        return float(np.sum(np.diff(caught, prepend=0.0) * precision) / caught[-1])

    return statistic


def f1_score(labels: Floats, flags: Floats) -> _Statistic:
    """The harmonic mean of precision and catch rate at the served threshold, for weighted rows."""

    def statistic(weights: Floats) -> float:
        return float(2 * np.sum(weights * labels * flags) / np.sum(weights * (labels + flags)))

    return statistic


def calibration_error(labels: Floats, scores: Floats) -> _Statistic:
    """The expected calibration error in ten equal bins: the mean distance, weighted by rows, of a
    bin's mean score from its share of harmful rows."""
    bins = _bins(scores)

    def statistic(weights: Floats) -> float:
        gaps = np.bincount(bins, weights * (scores - labels), minlength=BINS)
        return float(np.sum(np.abs(gaps)) / np.sum(weights))

    return statistic


def _bins(scores: Floats) -> npt.NDArray[np.int64]:
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)


def _reliability(rows: Sequence[Judged]) -> tuple[ReliabilityBin, ...]:
    """Returns the bins that are not empty."""
    scores = np.array([row.score for row in rows], dtype=np.float64)
    bins = _bins(scores)
    result = []
    for bin_ in range(BINS):
        members = [row for row, row_bin in zip(rows, bins, strict=True) if row_bin == bin_]
        if members:
            mean = float(scores[bins == bin_].mean())
            result.append(
                ReliabilityBin(mean, Figure.of("harmful", (row.harmful for row in members)))
            )
    return tuple(result)


def bootstrap(labels: Floats, statistic: _Statistic) -> Estimate:
    """Returns a statistic of weighted rows, with the interval of its resamples."""
    rng = np.random.default_rng(_SEED)
    strata = [np.flatnonzero(labels == label) for label in (0.0, 1.0)]
    resampled = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        weights = np.zeros(len(labels))
        for stratum in strata:
            drawn = rng.integers(0, len(stratum), len(stratum)) if len(stratum) else stratum
            weights[stratum] = np.bincount(drawn, minlength=len(stratum))
        resampled[index] = statistic(weights)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(statistic(np.ones(len(labels))), float(low), float(high))


def requests_per_second(rows: Sequence[Judged]) -> Estimate | None:
    """Returns verdicts per second, without pauses between sessions.

    The interval is from resampling up to twenty batches of verdicts.
    """
    seconds = _gaps(rows)
    if not len(seconds):
        return None
    batches = np.array_split(seconds, min(_BATCHES, len(seconds)))
    counts = np.array([len(batch) for batch in batches], dtype=np.float64)
    sums = np.array([batch.sum() for batch in batches])

    def rate(weights: Floats) -> float:
        duration = float(np.sum(weights * sums))
        return float(np.sum(weights * counts)) / duration if duration else math.nan

    return bootstrap(np.ones(len(batches)), rate)


def _gaps(rows: Sequence[Judged]) -> Floats:
    """Returns the time of each verdict since the previous one in its session."""
    sessions: dict[str, list[float]] = {}
    for row in rows:
        sessions.setdefault(row.session, []).append(row.at)
    return np.concatenate(
        [np.diff(sorted(times), prepend=0.0) for times in sessions.values()] or [np.empty(0)]
    )
