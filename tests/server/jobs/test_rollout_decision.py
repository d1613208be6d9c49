"""How often a rollout ends as it should, by simulation, and what its figures say."""

import math
import random
from dataclasses import replace

import pytest

from guard.store.rollouts import ArmCounts, RolloutCounts, Verdict
from server.jobs.rollout_decision import (
    Margins,
    compare,
    decide,
    looks_due,
    margins_of,
    reason_for,
)
from server.settings import Settings

MARGINS = Margins()
DAY_OF_ANSWERS = 12_800
RUNS = 200


class World:
    """Answers of an adapter with given true rates. seconds: of a token, in the median."""

    def __init__(
        self,
        source: random.Random,
        *,
        errors: float = 0.001,
        flagged: float = 0.1,
        withheld: float = 0.5,
        seconds: float = 0.02,
    ) -> None:
        """withheld: the share of flagged answers that are."""
        self._random = source
        self._rates = errors, flagged, withheld
        self._seconds = seconds

    def answer(self, number: int) -> ArmCounts:
        """Returns the counts of that many requests."""
        errors, rate, withheld_rate = self._rates
        failed = self._hits(number, errors)
        answers = number - failed
        flagged = self._hits(answers, rate)
        seconds = [self._seconds * math.exp(self._random.gauss(0, 0.5)) for _ in range(answers)]
        return ArmCounts(
            requests=number,
            answers=answers,
            flagged=flagged,
            withheld=self._hits(flagged, withheld_rate),
            errors=failed,
            timed=answers,
            token_s=sum(seconds),
            token_s2=sum(one * one for one in seconds),
        )

    def _hits(self, cases: int, rate: float) -> int:
        return sum(self._random.random() < rate for _ in range(cases))


def ended(old: World, new: World, share: float) -> Verdict | None:
    """Goes through a rollout, look by look, to the end of its time."""
    counts, looks, step = RolloutCounts(), 0, 50
    while counts.new.requests < DAY_OF_ANSWERS * share:
        of_old = round(step * (1 - share) / share)
        counts += RolloutCounts(new.answer(step), old.answer(of_old))
        due = looks_due(counts, MARGINS)
        if due > looks:
            looks = due
            verdict = decide(compare(counts, MARGINS, due))
            if verdict is not None:
                return verdict
    return None


def rates(share: float = 0.5, **new: float) -> dict[Verdict | None, float]:
    """How often rollouts end in which way."""
    source = random.Random(f"{share} {new}")
    ends = [ended(World(source), World(source, **new), share) for _ in range(RUNS)]
    kinds: tuple[Verdict | None, ...] = ("completed", "reverted", None)
    return {verdict: ends.count(verdict) / RUNS for verdict in kinds}


def test_equal_adapters_are_completed() -> None:
    shares = rates()
    assert shares["completed"] >= 0.9
    assert shares["reverted"] <= 0.01


@pytest.mark.parametrize(
    "worse",
    [
        {"errors": 0.001 + 2 * MARGINS.errors},
        {"flagged": 0.1 + 2 * MARGINS.shares},
        {"flagged": 0.2, "withheld": 0.9},
        {"seconds": 0.02 * MARGINS.slowdown**2},
    ],
)
def test_adapters_worse_by_twice_the_margin_are_not_completed(worse: dict[str, float]) -> None:
    shares = rates(**worse)
    assert shares["completed"] <= 0.05
    assert shares["reverted"] >= 0.8


@pytest.mark.parametrize(
    "worse", [{"flagged": 0.1 + MARGINS.shares}, {"seconds": 0.02 * MARGINS.slowdown}]
)
def test_adapters_worse_by_just_the_margin_are_rarely_completed(worse: dict[str, float]) -> None:
    # 5% of 200 runs, and three standard errors.
    assert rates(**worse)["completed"] <= 0.1


def test_a_better_adapter_is_completed() -> None:
    assert rates(flagged=0.05, seconds=0.015)["completed"] >= 0.9


@pytest.mark.parametrize(
    ("answers", "due"), [(0, 0), (199, 0), (200, 1), (399, 1), (400, 2), (799, 2), (1600, 4)]
)
def test_looks_come_at_doubling_counts_of_both(answers: int, due: int) -> None:
    few, many = ArmCounts(answers=answers), ArmCounts(answers=10_000)
    assert looks_due(RolloutCounts(few, many), MARGINS) == due
    assert looks_due(RolloutCounts(many, few), MARGINS) == due


def test_an_adapter_that_only_fails_is_reverted() -> None:
    good = World(random.Random(1)).answer(300)
    counts = RolloutCounts(ArmCounts(requests=200, errors=200), good)
    assert looks_due(counts, MARGINS) == 1
    figures = compare(counts, MARGINS, 1)
    assert decide(figures) == "reverted"
    assert reason_for("reverted", figures).startswith("worse; errors: ")
    assert "-> 100.0%" in reason_for("reverted", figures)


def test_later_looks_have_wider_intervals() -> None:
    arm = World(random.Random(1)).answer(400)
    counts = RolloutCounts(arm, arm)
    looks = zip(compare(counts, MARGINS, 1)[:4], compare(counts, MARGINS, 4), strict=False)
    for first, later in looks:
        assert later.low < first.low < first.high < later.high


def test_without_answers_nothing_is_decided() -> None:
    figures = compare(RolloutCounts(), MARGINS, 1)
    assert decide(figures) is None
    assert [str(figure) for figure in figures] == [
        "errors: not known yet",
        "flagged: not known yet",
        "withheld: not known yet",
        "seconds a token: not known yet",
        "guard's seconds: not known yet",
    ]
    one = ArmCounts(answers=1, timed=1, token_s=0.1, token_s2=0.01)
    assert decide(compare(RolloutCounts(one, one), MARGINS, 1)) is None


def test_figures_read_in_words() -> None:
    arm = ArmCounts(answers=100, flagged=10, timed=100, token_s=2.0, token_s2=0.05)
    figures = compare(RolloutCounts(replace(arm, flagged=20), arm), MARGINS, 1)
    flagged, seconds = str(figures[1]), str(figures[3])
    assert flagged.startswith("flagged: 10.0% -> 20.0%, +10.0 points (")
    assert flagged.endswith("; up to +5.0)")
    assert seconds.startswith("seconds a token: 0.02 -> 0.02, 1.00 times (0.")
    assert seconds.endswith("; up to 1.30)")


def test_the_guards_time_is_shown_and_decides_nothing() -> None:
    arm = ArmCounts(answers=1000, timed=1000, guard_s=10.0, guard_s2=0.2, token_s=20, token_s2=0.5)
    slow = replace(arm, guard_s=100.0, guard_s2=20.0)
    figures = compare(RolloutCounts(slow, arm), MARGINS, 1)
    assert str(figures[4]).startswith("guard's seconds: 0.01 -> 0.1, 10.00 times (")
    assert "up to" not in str(figures[4])
    assert decide(figures) == "completed"


def test_the_margins_are_the_settings() -> None:
    assert margins_of(Settings()) == MARGINS
