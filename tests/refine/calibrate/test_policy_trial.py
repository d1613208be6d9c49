"""What a policy does to labelled lines, rule by rule and at other thresholds."""

from typing import Any

import pytest

from guard.policy import Action
from guard.policy_file import parse_policies
from guard.verdict import CATEGORIES
from refine.benchmarks.rows import Kind, answer, request, text
from refine.calibrate.policy_trial import (
    THRESHOLDS,
    LabelledLine,
    LabelledTrial,
    RuleTrial,
    labelled_line,
    try_on_lines,
)
from refine.served import ServedVerdict

POLICY = parse_policies(
    """
[default]
threshold = 0.5
action = "block"

[categories.hate]
threshold = 0.8
action = "annotate"

[[criteria]]
name = "doses"
description = "It names a dose."
threshold = 0.6

[[criteria]]
name = "asks"
description = "It asks for a dose."
applies_to = ["input"]

[[criteria]]
name = "gnomes"
words = ["gnome"]

[[criteria]]
name = "mail"
arguments."*" = false
""",
    "a test",
).default


def line(harm: float, *, of: str = "violence", label: str = "", **criteria: float) -> LabelledLine:
    """An answer. label: its category, the criterion that applies, or empty if it is harmless."""
    row = answer(1, "Go on.", "...", harmful=label in CATEGORIES)
    labels: Any = {"category" if label in CATEGORIES else "criterion": label}
    scores = dict.fromkeys(CATEGORIES, 0.0) | {of: 0.4}
    served = ServedVerdict(0.4, scores, criteria)
    return labelled_line(type(row)(**vars(row) | labels), served, harm, POLICY)


def rule(trial: LabelledTrial, name: str) -> RuleTrial:
    (one,) = [one for one in trial.rules if one.name == name]
    return one


def test_each_rule_is_counted_on_its_own_lines() -> None:
    trial = try_on_lines(
        POLICY,
        [
            line(0.9, label="violence"),
            line(0.3, label="violence"),
            line(0.7, of="hate", label="hate"),
            line(0.6),
            line(0.2),
        ],
    )
    violence, hate = rule(trial, "violence").figures, rule(trial, "hate").figures
    assert violence.caught is not None
    assert hate.caught is not None
    assert (violence.caught.hits, violence.caught.n) == (1, 2)
    assert (violence.false_alarms.hits, violence.false_alarms.n) == (1, 2)
    assert (hate.caught.hits, hate.caught.n) == (0, 1)
    assert hate.false_alarms.hits == 0
    assert rule(trial, "sexual").figures.caught is None
    assert (trial.caught.hits, trial.caught.n) == (1, 3)
    assert (trial.false_alarms.hits, trial.false_alarms.n) == (1, 2)
    assert trial.actions[Action.BLOCK] == (1, 1)
    assert trial.actions[Action.PASS] == (2, 1)


def test_other_thresholds_say_what_would_change() -> None:
    trial = try_on_lines(POLICY, [line(0.75, of="hate", label="hate"), line(0.65, of="hate")])
    by_threshold = {at.threshold: at for at in rule(trial, "hate").others}
    assert tuple(by_threshold) == THRESHOLDS
    counts = [
        (at.caught.hits if at.caught else None, at.false_alarms.hits)
        for at in map(by_threshold.__getitem__, (0.5, 0.7, 0.8))
    ]
    assert counts == [(1, 1), (1, 0), (0, 0)]


def test_criteria_count_on_lines_labelled_with_them() -> None:
    trial = try_on_lines(
        POLICY,
        [
            line(0.1, label="doses", doses=0.9, gnomes=0.0),
            line(0.1, label="doses", doses=0.5, gnomes=1.0),
            line(0.1, doses=0.7, gnomes=0.0),
            line(0.9, label="violence", doses=0.1, gnomes=0.0),
        ],
    )
    doses, gnomes = rule(trial, "doses"), rule(trial, "gnomes")
    assert doses.figures.caught is not None
    assert (doses.figures.caught.hits, doses.figures.caught.n) == (1, 2)
    assert (doses.figures.false_alarms.hits, doses.figures.false_alarms.n) == (1, 2)
    assert doses.others
    assert (gnomes.figures.caught, gnomes.figures.false_alarms.hits) == (None, 1)
    assert gnomes.others == (), "it is found or not"
    # A line with a criterion is to be flagged although it is harmless.
    assert (trial.caught.hits, trial.caught.n) == (3, 3)
    assert (trial.false_alarms.hits, trial.false_alarms.n) == (1, 1)
    assert trial.untried == ("asks", "mail")


@pytest.mark.parametrize(
    ("kind", "criteria"),
    [("answer", {"doses"}), ("request", {"asks"}), ("text", {"doses", "asks"})],
)
def test_only_criteria_for_lines_of_the_kind_count(kind: Kind, criteria: set[str]) -> None:
    rows = {
        "answer": answer(1, "Go on.", "...", harmful=False),
        "request": request(1, "...", harmful=False),
        "text": text(1, "...", harmful=False),
    }
    served = ServedVerdict(0.0, dict.fromkeys(CATEGORIES, 0.0), {"doses": 0.9, "asks": 0.9})
    verdict = labelled_line(rows[kind], served, 0.0, POLICY).verdict
    assert verdict.criteria.keys() == criteria


def test_the_category_scores_follow_the_calibrated_harm() -> None:
    verdict = line(0.8).verdict
    assert verdict.category_scores is not None
    assert verdict.category_scores["violence"] == pytest.approx(0.8)
