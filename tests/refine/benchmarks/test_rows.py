"""The sample of a set, and its hash."""

import pytest

from refine.benchmarks.rows import BenchmarkSet, text


def rows(harmful: int, harmless: int) -> BenchmarkSet:
    labels = [True] * harmful + [False] * harmless
    listed = [text(line, f"text {line}", harmful=label) for line, label in enumerate(labels)]
    return BenchmarkSet("jsonl", "a.jsonl", tuple(listed))


@pytest.mark.parametrize(
    ("harmful", "harmless", "limit", "drawn"),
    [
        (30, 70, 10, 3),
        (1, 99, 10, 1),
        (99, 1, 10, 9),
        (0, 20, 10, 0),
        (20, 0, 10, 10),
        (5, 5, 1, 0),
        (5, 5, 2, 1),
        (5, 5, 100, 5),
        (5, 5, None, 5),
    ],
)
def test_a_sample_has_the_labels_in_proportion(
    harmful: int, harmless: int, limit: int | None, drawn: int
) -> None:
    benchmark = rows(harmful, harmless)
    places = benchmark.sample(limit)
    assert len(set(places)) == min(limit or 1000, harmful + harmless)
    assert sum(benchmark.rows[place].harmful for place in places) == drawn


def test_a_sample_is_fixed() -> None:
    assert rows(30, 70).sample(20) == rows(30, 70).sample(20)
    assert list(rows(30, 70).sample(20)) == sorted(rows(30, 70).sample(20))


def test_the_hash_is_that_of_the_rows() -> None:
    assert rows(3, 4).sha256 == rows(3, 4).sha256
    assert rows(3, 4).sha256 != rows(4, 3).sha256
