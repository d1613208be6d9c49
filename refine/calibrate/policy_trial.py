"""What a policy does to labelled lines: what it catches, its false alarms, and how both change with
each threshold. Owns these figures. Reads no model and proposes nothing (thresholds.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.criteria import Place
from guard.policy import Action, Decision, Policy, Rule
from guard.verdict import CATEGORIES, Verdict
from refine.benchmarks.rows import BenchmarkRow
from refine.evaluation.figures import Figure
from refine.served import ServedVerdict

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Where each rule is tried beside its own threshold."""

_NEVER = -1.0


@dataclass(frozen=True)
class LabelledLine:
    """A line with its calibrated verdict. category, criterion: of its label, or empty."""

    verdict: Verdict
    harmful: bool
    category: str = ""
    criterion: str = ""

    @property
    def should_be_flagged(self) -> bool:
        """Whether some rule should apply to it."""
        return self.harmful or bool(self.criterion)


@dataclass(frozen=True)
class AtThreshold:
    """What a rule does with a threshold. caught: of the lines with its label, None without any.
    false_alarms: of the lines that it should not apply to."""

    threshold: float
    caught: Figure | None
    false_alarms: Figure


@dataclass(frozen=True)
class RuleTrial:
    """One rule of a policy. others: at other thresholds, none for what is found without a model."""

    name: str
    rule: Rule
    figures: AtThreshold
    others: tuple[AtThreshold, ...] = ()


@dataclass(frozen=True)
class LabelledTrial:
    """What a policy does to the lines.

    caught: of the lines that should be flagged. false_alarms: of the others. actions: how many of
    either it takes each action on. untried: criteria that no line can be tried on.
    """

    policy: Policy
    caught: Figure
    false_alarms: Figure
    actions: Mapping[Action, tuple[int, int]]
    rules: tuple[RuleTrial, ...]
    untried: tuple[str, ...]


def labelled_line(
    row: BenchmarkRow, served: ServedVerdict, harm: float, policy: Policy
) -> LabelledLine:
    """Returns a line with its verdict, without the criteria that do not apply to lines of its kind.

    harm: the calibrated probability.
    """
    share = harm / served.harm if served.harm else 0.0
    places = {"answer": {Place.OUTPUT}, "request": {Place.INPUT}, "text": {*Place}}[row.kind]
    applicable = {one.name for one in policy.criteria_of(*places)}
    verdict = Verdict(
        harm,
        {name: share * score for name, score in served.category_scores.items()},
        criteria={name: p for name, p in served.criteria.items() if name in applicable},
    )
    return LabelledLine(verdict, row.harmful, row.category, row.criterion)


def try_on_lines(policy: Policy, lines: Sequence[LabelledLine]) -> LabelledTrial:
    """Returns what the policy does to the lines."""
    decided = [(line.should_be_flagged, policy.decide(line.verdict)) for line in lines]
    tried = {name for line in lines for name in line.verdict.criteria}
    criteria = [one.name for one in policy.criteria]
    rules = (*CATEGORIES, *(name for name in criteria if name in tried))
    return LabelledTrial(
        policy,
        Figure.of("caught", (one.flagged for wanted, one in decided if wanted)),
        Figure.of("false alarms", (one.flagged for wanted, one in decided if not wanted)),
        {action: _actions(action, decided) for action in Action},
        tuple(_rule_trial(policy, name, lines) for name in rules),
        tuple(name for name in criteria if name not in tried),
    )


def _actions(action: Action, decided: Sequence[tuple[bool, Decision]]) -> tuple[int, int]:
    wanted = [is_wanted for is_wanted, decision in decided if decision.action is action]
    return sum(wanted), len(wanted) - sum(wanted)


def _rule_trial(policy: Policy, name: str, lines: Sequence[LabelledLine]) -> RuleTrial:
    rule, criterion = policy.rules[name], policy.criterion(name)
    if criterion is None:
        labelled = [_score(line, name) for line in lines if line.category == name]
        others = [_score(line, name) for line in lines if not line.harmful]
    else:
        read = [line for line in lines if name in line.verdict.criteria]
        labelled = [_score(line, name) for line in read if line.criterion == name]
        others = [_score(line, name) for line in read if line.criterion != name]
    thresholds = THRESHOLDS if criterion is None or criterion.is_read else ()
    return RuleTrial(
        name,
        rule,
        _at(rule.threshold, labelled, others),
        tuple(_at(threshold, labelled, others) for threshold in thresholds),
    )


def _score(line: LabelledLine, name: str) -> float:
    """Returns what a rule's threshold is compared with."""
    verdict = line.verdict
    if name in verdict.criteria:
        return verdict.criteria[name]
    return verdict.harm if name in verdict.named else _NEVER


def _at(threshold: float, labelled: Sequence[float], others: Sequence[float]) -> AtThreshold:
    return AtThreshold(
        threshold,
        Figure.of("caught", (score >= threshold for score in labelled)) if labelled else None,
        Figure.of("false alarms", (score >= threshold for score in others)),
    )
