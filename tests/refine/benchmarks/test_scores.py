"""The figures against scikit-learn's, and against worked examples."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from refine.benchmarks.scores import (
    Judged,
    average_precision,
    calibration_error,
    f1_score,
    requests_per_second,
    score,
)


def judged(n: int, seed: int, digits: int = 1) -> list[Judged]:
    """Rows whose scores correlate with their labels; few digits make ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < 0.3 * n
    scores = np.clip(0.35 * labels + rng.random(n) * 0.65, 0, 1).round(digits)
    return [
        Judged(bool(label), bool(value >= 0.5), float(value), "s", 0.1 * place)
        for place, (label, value) in enumerate(zip(labels, scores, strict=True))
    ]


def arrays(rows: list[Judged]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([row.harmful for row in rows], dtype=float),
        np.array([row.score for row in rows], dtype=float),
        np.array([row.flagged for row in rows], dtype=float),
    )


@pytest.mark.parametrize("digits", [1, 2, 6])
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int, digits: int) -> None:
    rows = judged(200, seed, digits)
    labels, scores, flags = arrays(rows)
    weights = np.random.default_rng(seed).integers(0, 4, len(rows)).astype(float)
    for sample in (np.ones(len(rows)), weights):
        expected = metrics.average_precision_score(labels, scores, sample_weight=sample)
        assert average_precision(labels, scores)(sample) == pytest.approx(expected)
        expected = metrics.f1_score(labels, flags, sample_weight=sample)
        assert f1_score(labels, flags)(sample) == pytest.approx(expected)


def test_chance_has_the_average_precision_of_the_prevalence() -> None:
    rows = [replace(row, score=0.5) for row in judged(100, 0)]
    scores = score(rows)
    assert scores.average_precision is not None
    assert scores.average_precision.value == pytest.approx(scores.prevalence)


def test_calibration_error_of_a_worked_example() -> None:
    labels = np.array([1.0, 0.0, 1.0, 1.0])
    scores = np.array([0.15, 0.15, 0.92, 1.0])
    # Bins: mean 0.15 with half harmful; mean 0.96 with all harmful.
    expected = 0.5 * abs(0.15 - 0.5) + 0.5 * abs(0.96 - 1)
    assert calibration_error(labels, scores)(np.ones(4)) == pytest.approx(expected)


def test_rates_are_those_at_the_served_threshold() -> None:
    flags = [(True, True), (True, False), (True, True), (False, True), (False, False)]
    scores = score([Judged(label, flag, 0.1, "s", 1.0) for label, flag in flags])
    assert scores.catch_rate is not None
    assert scores.false_alarm_rate is not None
    assert (scores.catch_rate.hits, scores.catch_rate.n) == (2, 3)
    assert (scores.false_alarm_rate.hits, scores.false_alarm_rate.n) == (1, 2)


def test_every_estimate_lies_in_its_interval_and_is_repeatable() -> None:
    rows = judged(300, 1)
    one, other = score(rows), score(rows)
    for name in ("average_precision", "f1", "requests_per_second"):
        estimate = getattr(one, name)
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate == getattr(other, name)
    assert one.calibration_error == other.calibration_error


def test_the_interval_of_f1_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = score(judged(20_000, 99)).f1
    assert truth is not None
    estimates = [score(judged(150, seed)).f1 for seed in range(40)]
    covered = sum(one is not None and one.low <= truth.value <= one.high for one in estimates)
    assert covered >= 34


@pytest.mark.parametrize("label", [True, False])
def test_one_label_gives_one_rate_only(label: bool) -> None:
    scores = score([Judged(label, True, 0.9, "s", 1.0)] * 3)
    assert (scores.catch_rate is None) is not label
    assert (scores.false_alarm_rate is None) is label
    assert scores.f1 is None
    assert scores.average_precision is None
    assert scores.calibration_error is None
    assert scores.reliability == ()


def test_a_verdict_without_scores_leaves_rates_but_no_ranking() -> None:
    rows = judged(50, 2)
    scores = score([replace(rows[0], score=None), *rows[1:]])
    assert scores.scored == 49
    assert scores.catch_rate is not None
    assert scores.f1 is not None
    assert scores.average_precision is None
    assert scores.calibration_error is None


def test_no_verdict_at_all_gives_no_figure() -> None:
    scores = score([])
    assert scores.catch_rate is None
    assert scores.requests_per_second is None
    assert math.isnan(scores.prevalence)


def test_the_bins_of_the_plot_hold_every_row() -> None:
    scores = score(judged(200, 3, 6))
    assert sum(tenth.harmful.n for tenth in scores.reliability) == 200
    assert [tenth.score for tenth in scores.reliability] == sorted(
        tenth.score for tenth in scores.reliability
    )


def test_groups_have_the_rates_that_they_can_have() -> None:
    rows = [
        Judged(True, True, 0.9, "s", 1.0, "a"),
        Judged(True, False, 0.1, "s", 2.0, "a"),
        Judged(False, False, 0.1, "s", 3.0, "b"),
    ]
    groups = score(rows).groups
    assert [(rate.name, rate.share) for rate in groups["a"]] == [("catch rate", 0.5)]
    assert [(rate.name, rate.share) for rate in groups["b"]] == [("false-alarm rate", 0.0)]


def test_pauses_between_sessions_do_not_slow_the_rate() -> None:
    times = [("one", 0.5), ("one", 1.0), ("two", 0.5), ("two", 1.0)]
    rate = requests_per_second([Judged(True, True, 0.9, session, at) for session, at in times])
    assert rate is not None
    assert rate.value == pytest.approx(2.0)
