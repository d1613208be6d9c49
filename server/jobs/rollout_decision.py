"""How a staged rollout is decided: the new adapter's counts beside the old one's. Owns the figures,
their intervals and the rule. Ends no rollout (rollouts.py).

The adapters are compared at looks: when both have n answers, 2n, 4n and so on. Look k has one-sided
intervals of error 5% / 2^k. All looks together err at most as often as their sum, so that

- an adapter that is worse than the margin on any figure is completed in at most 5% of rollouts,
  however long they go on (completing needs every figure, so that figures do not add up);
- an adapter is reverted for a figure on which it is not worse than the margin in at most 5%, and
  far less often where it is equal.

Answers count as independent of each other. Those of one user are not, and a user keeps one adapter:
where few users send most requests, the true rates are higher.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from guard.store.rollouts import ArmCounts, RolloutCounts, RolloutStore, StoredRollout, Verdict
from refine.evaluation.unpaired import Sample, mean_ratio, unpaired_difference
from server.settings import Settings

_ERROR = 0.05


@dataclass(frozen=True)
class Margins:
    """answers: of each adapter before the first look. hours: after which it is reverted, undecided.

    shares, errors: by how much flagged and withheld answers, and errors, may be more frequent.
    slowdown: how many times the old one's seconds for each token the new one may take.
    """

    answers: int = 200
    hours: float = 24.0
    shares: float = 0.05
    errors: float = 0.02
    slowdown: float = 1.3


def margins_of(settings: Settings) -> Margins:
    """Returns what the settings allow a new adapter."""
    return Margins(
        answers=settings.rollout_answers,
        hours=settings.rollout_hours,
        shares=settings.rollout_margin,
        errors=settings.rollout_error_margin,
        slowdown=settings.rollout_slowdown,
    )


@dataclass(frozen=True)
class Compared:
    """One figure of both adapters, None where there are no cases, and what is known of the change.

    change: new - old of shares in [0, 1], new / old of seconds, with its interval.
    limit: the margin of the change, None for a figure that decides nothing. is_share: or else
    seconds.
    """

    name: str
    old: float | None
    new: float | None
    change: float | None
    low: float
    high: float
    limit: float | None
    is_share: bool = True

    @property
    def is_worse(self) -> bool:
        """Whether the change is beyond the margin, with confidence."""
        return self.limit is not None and self.low > self.limit

    @property
    def is_fine(self) -> bool:
        """Whether the change is within the margin, with confidence."""
        return self.limit is None or self.high < self.limit

    def __str__(self) -> str:
        if self.old is None or self.new is None or self.change is None:
            return f"{self.name}: not known yet"
        value, unit = ("{:.1%}", "points") if self.is_share else ("{:.3g}", "times")
        limit = "" if self.limit is None else f"; up to {self._amount(self.limit)}"
        return (
            f"{self.name}: {value.format(self.old)} -> {value.format(self.new)}, "
            f"{self._amount(self.change)} {unit} "
            f"({self._amount(self.low)} to {self._amount(self.high)}{limit})"
        )

    def _amount(self, change: float) -> str:
        return f"{100 * change:+.1f}" if self.is_share else f"{change:.2f}"


@dataclass(frozen=True)
class Standing:
    """A rollout and how it stands by now."""

    rollout: StoredRollout
    counts: RolloutCounts
    figures: Sequence[Compared]


def looks_due(counts: RolloutCounts, margins: Margins) -> int:
    """Returns how many looks are due by now. Failures count as answers here, so that an adapter
    that always fails is noticed."""
    fewest = min(arm.answers + arm.errors for arm in (counts.old, counts.new))
    return (fewest // margins.answers).bit_length()


def compare(counts: RolloutCounts, margins: Margins, look: int) -> Sequence[Compared]:
    """Returns all figures with the intervals of that look, counted from 1."""
    z = -NormalDist().inv_cdf(_ERROR / 2**look)
    old, new = counts.old, counts.new
    return (
        _shares("errors", _errors(old), _errors(new), margins.errors, z),
        _shares(
            "flagged", (old.flagged, old.answers), (new.flagged, new.answers), margins.shares, z
        ),
        _shares(
            "withheld", (old.withheld, old.answers), (new.withheld, new.answers), margins.shares, z
        ),
        _seconds(
            "seconds a token",
            Sample(old.timed, old.token_s, old.token_s2),
            Sample(new.timed, new.token_s, new.token_s2),
            margins.slowdown,
            z,
        ),
        _seconds(
            "guard's seconds",
            Sample(old.timed, old.guard_s, old.guard_s2),
            Sample(new.timed, new.guard_s, new.guard_s2),
            None,
            z,
        ),
    )


def decide(figures: Sequence[Compared]) -> Verdict | None:
    """Returns how the rollout ends by these figures, or None while that is open."""
    if any(figure.is_worse for figure in figures):
        return "reverted"
    return "completed" if all(figure.is_fine for figure in figures) else None


def reason_for(verdict: Verdict, figures: Sequence[Compared]) -> str:
    """Returns the decision in words, with the figures that it rests on."""
    if verdict == "completed":
        return "not worse; " + "; ".join(map(str, figures))
    return "worse; " + "; ".join(str(figure) for figure in figures if figure.is_worse)


async def standing(
    store: RolloutStore, margins: Margins, limit: int, before: int | None = None
) -> Sequence[Standing]:
    """Returns at most `limit` rollouts with their figures, newest first, below the number `before`
    if given. Raises StoreUnavailable."""
    rollouts = await store.list(limit, before)
    counts = await store.counts([rollout.id for rollout in rollouts])
    return [
        Standing(
            rollout, counts[rollout.id], compare(counts[rollout.id], margins, rollout.looks or 1)
        )
        for rollout in rollouts
    ]


def _errors(arm: ArmCounts) -> tuple[int, int]:
    return arm.errors, arm.answers + arm.errors


def _shares(
    name: str, old: tuple[int, int], new: tuple[int, int], limit: float, z: float
) -> Compared:
    difference = unpaired_difference(old, new, z)
    before, after = (hits / cases if cases else None for hits, cases in (old, new))
    change = _known(difference.value)
    return Compared(name, before, after, change, difference.low, difference.high, limit)


def _seconds(name: str, before: Sample, after: Sample, limit: float | None, z: float) -> Compared:
    ratio = mean_ratio(before, after, z)
    return Compared(
        name,
        _known(before.mean),
        _known(after.mean),
        _known(ratio.value),
        ratio.low,
        ratio.high,
        limit,
        is_share=False,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
