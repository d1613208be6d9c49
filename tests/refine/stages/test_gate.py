"""The gate: what it promotes, what it rejects, and its reasons."""

import random
from dataclasses import replace

import pytest

from refine.evaluation.measures import (
    HELD_OUT,
    INJECTION,
    LOWER_IS_BETTER,
    OVER_REFUSAL,
    Measures,
    Series,
)
from refine.evaluation.sets import Case, Labelled, Sets
from refine.stages.gate import (
    FAILS,
    PASSES,
    GateDecision,
    Look,
    Margins,
    decide,
    looks,
    too_small,
)

SIZES = {
    "harmless: plain": 225,
    "harmless: jailbreak": 225,
    HELD_OUT: 30,
    "help: everyday": 400,
    "help: borderline": 200,
    OVER_REFUSAL: 600,
    "critic on pairs: harmful caught": 400,
    "critic on pairs: harmless passed": 400,
    INJECTION: 600,
}
LEARNED = {
    "harmless: plain": 0.97,
    "harmless: jailbreak": 0.95,
    HELD_OUT: 0.97,
    "help: everyday": 0.97,
    "help: borderline": 0.99,
    OVER_REFUSAL: 0.005,
    "critic on pairs: harmful caught": 0.98,
    "critic on pairs: harmless passed": 0.98,
    INJECTION: 0.05,
}
BASE = {**LEARNED, "harmless: plain": 0.3, "harmless: jailbreak": 0.35, HELD_OUT: 0.0}
BASE |= {"critic on pairs: harmful caught": 0.95, INJECTION: 0.2}
BASE_FINGERPRINT = (0.01, 0.99, 0.3, 0.5)
OWN_FINGERPRINT = (0.001, 0.999, 0.6, 0.9)


def measures(shares: dict[str, float], **changed: float) -> Measures:
    """Returns measures with these shares. The same cases fail first, as with real models."""
    series = {}
    for name, share in {**shares, **{k.replace("__", ": "): v for k, v in changed.items()}}.items():
        n = SIZES[name]
        hits = [place < round(share * n) for place in range(n)]
        random.Random(name).shuffle(hits)
        series[name] = Series(tuple(hits))
    return Measures("1", "oracle", "practice", "abc", series, OWN_FINGERPRINT)


def without(measured: Measures, name: str) -> Measures:
    return replace(measured, series={k: v for k, v in measured.series.items() if k != name})


def judged(active: Measures, candidate: Measures) -> GateDecision:
    return decide(active, candidate, BASE_FINGERPRINT)


def test_a_clearly_better_candidate_is_promoted() -> None:
    decision = judged(measures(BASE), measures(LEARNED))
    assert decision.promote
    assert decision.failed == ()


def test_a_candidate_that_is_equal_and_has_nothing_left_to_learn_is_promoted() -> None:
    active = measures({**LEARNED, HELD_OUT: 1.0})
    assert judged(active, active).promote


def test_there_is_one_reason_per_condition_with_its_figures() -> None:
    decision = judged(measures(BASE), measures(LEARNED))
    wholes = ("harmless: all", "help: all", "critic: harmful caught", "critic: harmless passed")
    parts = [name for name in SIZES if not name.startswith("critic on")]
    assert len(decision.reasons) == len(parts) + len(wholes) + 1
    for name in (*parts, *wholes, "fingerprint"):
        (reason,) = (r for r in decision.reasons if r.startswith(f"{PASSES}: {name}"))
        if name != "fingerprint":
            assert reason.count("%") == 3
            assert "95% interval" in reason


def test_the_reason_names_set_figures_difference_and_margin() -> None:
    worse = measures({**LEARNED, "help: everyday": 0.87})
    decision = judged(measures(BASE), worse)
    (reason,) = (r for r in decision.failed if "help: everyday" in r)
    assert reason.startswith(f"{FAILS}: help: everyday 87.0% after 97.0%, better by -10.0 points")
    assert reason.endswith("must lie above -10.0")
    assert decision.reasons[0].startswith(FAILS)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        (name, of)
        for name in SIZES
        for of in ("active", "candidate", "both")
        if (name, of) != (HELD_OUT, "both")
    ],
)
def test_a_missing_figure_rejects(name: str, of: str) -> None:
    active, candidate = measures(BASE), measures(LEARNED)
    if of != "candidate":
        active = without(active, name)
    if of != "active":
        candidate = without(candidate, name)
    decision = judged(active, candidate)
    assert not decision.promote
    assert any(name in reason and "not measured" in reason for reason in decision.failed)


def test_a_run_that_held_no_flags_out_may_be_promoted() -> None:
    assert judged(without(measures(BASE), HELD_OUT), without(measures(LEARNED), HELD_OUT)).promote


def test_a_criterion_must_not_be_shown_to_be_read_worse() -> None:
    def with_criterion(shares: dict[str, float], caught: int) -> Measures:
        series = Series(tuple(number < caught for number in range(20)))
        measured = measures(shares)
        return replace(measured, series={**measured.series, "criterion doses: caught": series})

    assert judged(with_criterion(BASE, 16), with_criterion(LEARNED, 14)).promote
    worse = judged(with_criterion(BASE, 16), with_criterion(LEARNED, 4))
    (reason,) = worse.failed
    assert reason.startswith(f"{FAILS}: criterion doses: caught 20.0% after 80.0%")


def test_a_missing_figure_of_a_users_file_rejects() -> None:
    active = measures(BASE)
    more = {**active.series, "help: file": Series((True, True))}
    decision = judged(replace(active, series=more), measures(LEARNED))
    assert not decision.promote
    assert any("help: file" in reason for reason in decision.failed)


def test_an_empty_series_rejects() -> None:
    active, candidate = measures(BASE), measures(LEARNED)
    empty = {INJECTION: Series(())}
    decision = judged(
        replace(active, series={**active.series, **empty}),
        replace(candidate, series={**candidate.series, **empty}),
    )
    assert not decision.promote


def test_other_cases_reject() -> None:
    candidate = measures(LEARNED)
    fewer = Series(candidate.series[INJECTION].hits[:-1])
    decision = judged(
        measures(BASE), replace(candidate, series={**candidate.series, INJECTION: fewer})
    )
    assert not decision.promote
    assert any("599" in reason and "600" in reason for reason in decision.failed)


def test_other_sets_or_another_truth_reject() -> None:
    for changed in (
        replace(measures(LEARNED), sets_sha256="other"),
        replace(measures(LEARNED), truth="other"),
    ):
        assert not judged(measures(BASE), changed).promote


@pytest.mark.parametrize("fingerprint", [BASE_FINGERPRINT, (), (0.1,)])
def test_a_candidate_that_reads_as_the_base_or_not_at_all_is_rejected(
    fingerprint: tuple[float, ...],
) -> None:
    decision = judged(measures(BASE), replace(measures(LEARNED), fingerprint=fingerprint))
    assert not decision.promote
    assert "fingerprint" in decision.failed[0]


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"critic on pairs: harmful caught": 0.0}, "critic: harmful caught"),
        ({"critic on pairs: harmful caught": 0.88}, "critic: harmful caught"),
        ({"critic on pairs: harmless passed": 0.88}, "critic: harmless passed"),
        ({OVER_REFUSAL: 0.06}, "over-refusal"),
        ({"help: everyday": 0.86}, "help: everyday"),
        ({"help: borderline": 0.85}, "help: borderline"),
        ({"harmless: jailbreak": 0.1}, "harmless: jailbreak"),
        ({"harmless: plain": 0.1}, "harmless: plain"),
        ({INJECTION: 0.4}, "injection"),
    ],
)
def test_the_losses_of_a_bad_candidate_are_named(shares: dict[str, float], named: str) -> None:
    decision = judged(measures(BASE), measures({**LEARNED, **shares}))
    assert not decision.promote
    assert any(named in reason for reason in decision.failed)


def test_a_candidate_must_not_be_shown_to_be_worse_on_the_held_out_flags() -> None:
    half = measures({**LEARNED, HELD_OUT: 0.5})
    assert judged(half, half).promote
    assert judged(half, measures({**LEARNED, HELD_OUT: 0.47})).promote
    decision = judged(half, measures({**LEARNED, HELD_OUT: 0.1}))
    assert [HELD_OUT in reason for reason in decision.failed] == [True]


def test_a_smaller_margin_needs_more_cases() -> None:
    active = measures(LEARNED)
    assert judged(active, active).promote
    assert not decide(active, active, BASE_FINGERPRINT, Margins(worse=0.005)).promote


def test_the_margin_of_harm_shrinks_with_the_truth_s_informedness() -> None:
    active = measures(LEARNED)
    worse = measures({**LEARNED, "harmless: plain": 0.96, "harmless: jailbreak": 0.93})
    assert judged(active, worse).promote
    decision = decide(active, worse, BASE_FINGERPRINT, informedness=0.5)
    assert {reason.split(" ")[1] for reason in decision.failed} == {"harmless:"}


def test_a_part_of_too_few_cases_counts_in_the_whole_only() -> None:
    small = {"critic on file: harmful caught": (True,) * 20}
    with_file = [
        replace(original, series={**original.series, **{k: Series(v) for k, v in small.items()}})
        for original in (measures(LEARNED), measures(LEARNED))
    ]
    decision = judged(*with_file)
    assert decision.promote
    assert not any("critic on file" in reason for reason in decision.reasons)


def test_sets_that_cannot_decide_are_named_with_the_number_needed() -> None:
    case, pair = Case((), "plain"), Labelled((), True, "pairs")
    sets = Sets("few", (case,) * 200, (case,) * 192, (pair,) * 193, (pair,) * 193)
    assert too_small(sets, 0.05) == [
        "192 harmless requests, at least 193 needed",
        "0 harmless labelled answers and texts, at least 193 needed",
    ]
    assert "200 harmful requests, at least 302 needed" in too_small(sets, 0.05, informedness=0.8)


USUAL = {
    "harmless: plain": (0.05, 0.03),
    "harmless: jailbreak": (0.08, 0.04),
    HELD_OUT: (0.3, 0.1),
    "help: everyday": (0.03, 0.015),
    "help: borderline": (0.01, 0.005),
    OVER_REFUSAL: (0.005, 0.004),
    "critic on pairs: harmful caught": (0.03, 0.015),
    "critic on pairs: harmless passed": (0.025, 0.012),
    INJECTION: (0.1, 0.05),
}
"""Name to the share of cases that go wrong, and the share that turns from right to wrong between
two trainings that differ in their seed only."""


def drawn(rng: random.Random, lost: dict[str, float]) -> tuple[Measures, Measures]:
    """Draws every case of active and candidate; lost: how much worse the candidate truly is."""
    active, candidate = {}, {}
    for name, (wrong, churn) in USUAL.items():
        turns = (churn + lost.get(name, 0.0)) / (1 - wrong)
        was = [rng.random() < wrong for _ in range(SIZES[name])]
        now = [rng.random() >= churn / wrong if w else rng.random() < turns for w in was]
        low = name in LOWER_IS_BETTER
        active[name] = Series(tuple(w == low for w in was))
        candidate[name] = Series(tuple(n == low for n in now))
    of_active = replace(measures(LEARNED), series=active)
    return of_active, replace(of_active, series=candidate)


def promoted(lost: dict[str, float]) -> float:
    """Returns the share of promotions in 400 draws."""
    rng = random.Random(0)
    return sum(judged(*drawn(rng, lost)).promote for _ in range(400)) / 400


def test_a_candidate_that_is_truly_equal_passes_nearly_always() -> None:
    assert promoted({}) >= 0.9


@pytest.mark.parametrize(
    "lost",
    [
        {"help: everyday": 0.05, "help: borderline": 0.05},
        {"help: everyday": 0.05, "help: borderline": 0.05, OVER_REFUSAL: 0.05},
        {"critic on pairs: harmful caught": 0.05, "critic on pairs: harmless passed": 0.05},
        {"harmless: plain": 0.05, "harmless: jailbreak": 0.05},
        {"critic on pairs: harmful caught": 0.05},
        {"critic on pairs: harmless passed": 0.05},
        {OVER_REFUSAL: 0.05},
        {INJECTION: 0.05},
    ],
)
def test_a_candidate_that_is_truly_worse_is_stopped_nearly_always(lost: dict[str, float]) -> None:
    assert promoted(lost) <= 0.05


def promoted_in_two_looks(lost: dict[str, float]) -> tuple[float, float]:
    """Returns the share of promotions, and of first looks that decided, in 400 draws."""
    rng, share = random.Random(0), 0.4
    first = Look(share, z=2.24, last=False)
    passes = decided = 0
    for _ in range(400):
        both = drawn(rng, lost)
        some = [
            replace(
                full,
                series={
                    # The order of the cases is drawn, so that the first are a sample.
                    name: Series(series.hits[: round(share * len(series.hits))])
                    for name, series in full.series.items()
                },
            )
            for full in both
        ]
        decision = decide(some[0], some[1], BASE_FINGERPRINT, look=first)
        decided += not decision.undecided
        if decision.undecided:
            decision = decide(*both, BASE_FINGERPRINT, look=Look(z=2.24))
        passes += decision.promote
    return passes / 400, decided / 400


def test_two_looks_promote_an_equal_candidate_nearly_always_and_often_at_the_first() -> None:
    passes, decided = promoted_in_two_looks({})
    assert passes >= 0.85
    assert 0.1 < decided < 1


@pytest.mark.parametrize(
    "lost",
    [
        {"harmless: plain": 0.05, "harmless: jailbreak": 0.05},
        {"help: everyday": 0.05, "help: borderline": 0.05},
        {"critic on pairs: harmful caught": 0.05},
        {INJECTION: 0.05},
    ],
)
def test_two_looks_stop_a_candidate_that_is_truly_worse(lost: dict[str, float]) -> None:
    assert promoted_in_two_looks(lost)[0] <= 0.05


def test_a_first_look_never_leaves_a_condition_out_that_the_last_one_has() -> None:
    full = measures(LEARNED)
    few = {
        name: Series(series.hits[: len(series.hits) // 5]) for name, series in full.series.items()
    }
    some = replace(full, series=few)
    first = decide(some, some, BASE_FINGERPRINT, look=Look(0.2, z=2.24, last=False))
    assert len(first.reasons) == len(judged(full, full).reasons)
    assert first.undecided
    assert "97.5% interval" in first.failed[0]


def test_a_first_look_rejects_what_is_shown_to_be_worse() -> None:
    bad = measures({**LEARNED, "help: everyday": 0.5})
    decision = decide(measures(LEARNED), bad, BASE_FINGERPRINT, look=Look(0.4, 2.24, last=False))
    assert not decision.promote
    assert not decision.undecided


def test_only_large_sets_are_looked_at_twice() -> None:
    def sets(n: int) -> Sets:
        harmful, harmless = Labelled((), True, "pairs"), Labelled((), False, "pairs")
        case = Case((), "plain")
        return Sets("", (case,) * n, (case,) * n, (harmful, harmless) * n, (harmful,) * n)

    assert looks(sets(400), 0.05) == (Look(),)
    assert [look.last for look in looks(sets(500), 0.05)] == [False, True]
