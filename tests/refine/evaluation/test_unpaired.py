"""The interval of unpaired shares against published values, and the coverage of both intervals."""

import math
import random

import pytest

from refine.evaluation.unpaired import Sample, mean_ratio, unpaired_difference

Z = 1.96


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [
        # Newcombe 1998, table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_the_difference_is_newcombes(
    after: tuple[int, int], before: tuple[int, int], low: float, high: float
) -> None:
    difference = unpaired_difference(before, after, 1.959964)
    assert difference.value == pytest.approx(after[0] / after[1] - before[0] / before[1])
    assert [difference.low, difference.high] == pytest.approx([low, high], abs=6e-5)


def test_without_cases_nothing_is_known() -> None:
    difference = unpaired_difference((0, 0), (3, 4), Z)
    assert math.isnan(difference.value)
    assert (difference.low, difference.high) == (-1, 1)
    for sample in (Sample(0, 0.0, 0.0), Sample(1, 2.0, 4.0), Sample(3, 0.0, 0.0)):
        ratio = mean_ratio(sample, Sample(9, 9.0, 12.0), Z)
        assert (ratio.low, ratio.high) == (0, math.inf)


def drawn(source: random.Random, n: int, median: float) -> Sample:
    values = [median * math.exp(source.gauss(0, 0.6)) for _ in range(n)]
    return Sample(n, sum(values), sum(value**2 for value in values))


def test_the_ratio_of_means_is_covered_as_often_as_it_says() -> None:
    source, covered, runs = random.Random(1), 0, 1000
    for _ in range(runs):
        ratio = mean_ratio(drawn(source, 150, 0.02), drawn(source, 300, 0.03), Z)
        assert ratio.low < ratio.value < ratio.high
        covered += ratio.low < 1.5 < ratio.high
    assert 0.93 < covered / runs < 0.97
