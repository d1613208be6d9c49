"""Shares, their intervals and the table."""

import math

import pytest

from refine.evaluation.figures import Figure, Section, table


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (10, 10, 0.722, 1.0), (98, 100, 0.930, 0.994)],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float) -> None:
    assert Figure("x", hits, n).interval == pytest.approx((low, high), abs=0.001)


def test_no_cases_say_nothing() -> None:
    figure = Figure.of("x", [])
    assert math.isnan(figure.share)
    assert figure.interval == (0.0, 1.0)
    assert figure.as_json()["share"] is None


def test_table_names_every_figure_and_its_bound() -> None:
    text = table([Section("Answers", (Figure.of("helped", [True, False], ">= 95%"),))])
    assert "Answers" in text
    assert "helped" in text
    assert " 50.0%" in text
    assert "n=2" in text
    assert text.endswith(">= 95%")
