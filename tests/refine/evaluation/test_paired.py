"""The difference of paired shares: known values, and the coverage of its interval."""

import random

import pytest

from refine.evaluation.paired import Difference, mean_difference, paired_difference


def table(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Returns outcomes before and after with these counts."""
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * (both + gained) + [False] * (lost + neither)
    return before, after


def test_newcombe_s_own_example() -> None:
    difference = paired_difference(*table(36, 12, 2, 0))
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (0.2, 0.0569, 0.3404), abs=1e-4
    )


def test_losses_mirror_gains() -> None:
    lost = paired_difference(*table(36, 2, 12, 0))
    mirrored = paired_difference(*table(36, 12, 2, 0)).negated
    assert (lost.low, lost.high) == pytest.approx((mirrored.low, mirrored.high))


def test_two_perfect_results_still_have_an_interval() -> None:
    difference = paired_difference([True] * 50, [True] * 50)
    assert difference.value == 0
    assert -0.08 < difference.low < -0.06


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False])])
def test_other_cases_are_refused(before: list[bool], after: list[bool]) -> None:
    with pytest.raises(ValueError, match="same cases"):
        paired_difference(before, after)


def test_the_lower_end_is_above_the_truth_in_one_case_of_forty() -> None:
    rng = random.Random(0)
    above = 0
    for _ in range(2_000):
        draws = [rng.random() for _ in range(200)]
        before = [draw < 0.96 for draw in draws]
        after = [draw < 0.94 or 0.96 <= draw < 0.98 for draw in draws]
        above += paired_difference(before, after).low > 0
    assert above / 2_000 < 0.035


def test_the_mean_of_two_is_narrower_than_either() -> None:
    one = Difference(0.1, 0.0, 0.2)
    difference = mean_difference(one, one)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.0293, 0.1707), abs=1e-4)
