"""What to do about a verdict. Owns the rules and the decision. Does not read the policy file
(policy_file.py), compute probabilities (critic.py) or carry the decision out (engine.py).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from guard.criteria import Criterion, Place
from guard.matchers import matches, undecided
from guard.tool_calls import ToolCall
from guard.verdict import CATEGORIES, Verdict

DEFAULT_POLICY = "default"
"""The name of the policy of requests that get no other."""


class Action(StrEnum):
    """What is done with an answer, from the most lenient to the strictest."""

    PASS = "pass"
    ANNOTATE = "annotate"
    MASK = "mask"
    REVISE = "revise"
    BLOCK = "block"


STRICTNESS: Mapping[Action, int] = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True)
class Rule:
    """Applies `action` when a probability reaches `threshold`, in [0, 1]: that of harm for a
    category, its own for a criterion."""

    threshold: float
    action: Action

    def is_as_strict_as(self, other: "Rule") -> bool:
        """Whether it applies wherever the other one does, with an action at least as strict."""
        return (
            self.threshold <= other.threshold
            and STRICTNESS[self.action] >= STRICTNESS[other.action]
        )


@dataclass(frozen=True)
class Decision:
    """categories: those that reached their thresholds, then the criteria that did. reason: never
    quotes the answer. criterion: the one that the action is for, unless it is for a category."""

    action: Action
    categories: tuple[str, ...]
    reason: str
    criterion: Criterion | None = None

    @property
    def flagged(self) -> bool:
        """Whether any category or criterion reached its threshold, whatever the action."""
        return bool(self.categories)


@dataclass(frozen=True)
class Policy:
    """A rule for each of the 13 categories and for each criterion, and the refusal sent instead of
    a blocked answer.

    hash: 16 hex digits that change with any rule, criterion or refusal; stored with each flag.
    shadow: what it flags is recorded, and nothing is withheld or annotated.
    tools: the names of the tools that a request may offer to the model; None for any.
    """

    refusal: str
    rules: Mapping[str, Rule]
    hash: str
    criteria: tuple[Criterion, ...] = ()
    name: str = DEFAULT_POLICY
    shadow: bool = False
    tools: tuple[str, ...] | None = None

    @cached_property
    def lowest_threshold(self) -> float:
        """Below this harm no category's rule applies, so the categories need not be read."""
        return min(self.rules[name].threshold for name in CATEGORIES)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The categories, then the criteria."""
        return (*CATEGORIES, *(criterion.name for criterion in self.criteria))

    def undecided(self, answer: str) -> int:
        """Returns how many characters at the end of an unfinished answer may belong to what a
        criterion looks for."""
        matchers = (one.matcher for one in self.criteria_of(Place.OUTPUT))
        return max((undecided(one, answer) for one in matchers if one is not None), default=0)

    def masked_in(self, place: Place) -> tuple[Criterion, ...]:
        """Returns the criteria whose matches in an answer or an input are masked."""
        return tuple(
            one
            for one in self.criteria_of(place)
            if self.rules[one.name].action is Action.MASK and not self.shadow
        )

    def criteria_of_input(self) -> tuple[Criterion, ...]:
        """Returns the criteria by which an input is judged, once it is masked."""
        masked = self.masked_in(Place.INPUT)
        return tuple(one for one in self.criteria_of(Place.INPUT) if one not in masked)

    def decide_on_masked(self, names: Collection[str]) -> tuple[Verdict, Decision]:
        """Returns what follows for an input in which these criteria were masked."""
        criteria = {one.name: float(one.name in names) for one in self.masked_in(Place.INPUT)}
        verdict = Verdict(0.0, None, reads=0, criteria=criteria)
        return verdict, self.decide_on_criteria(verdict)

    @cached_property
    def withholds_calls(self) -> bool:
        """Whether an answer may be withheld for the tools that it calls."""
        actions = {self.rules[one.name].action for one in self.criteria_of(Place.TOOL_CALL)}
        return bool(actions & {Action.REVISE, Action.BLOCK}) and not self.shadow

    def criteria_of_answer(self, calls: Sequence[ToolCall]) -> tuple[Criterion, ...]:
        """Returns the criteria that are read of an answer with these tool calls, or looked for in
        its words."""
        places = {Place.OUTPUT, Place.TOOL_CALL} if calls else {Place.OUTPUT}
        return tuple(
            one
            for one in self.criteria
            if Place.OUTPUT in one.applies_to or (one.is_read and one.applies_to & places)
        )

    def found_in(self, calls: Sequence[ToolCall]) -> Mapping[str, float]:
        """Returns 1 for each criterion that is found in an answer's tool calls, 0 for those that
        are looked for and not found; nothing where there are no calls."""
        found: dict[str, float] = {}
        if not calls:
            return found
        for one in self.criteria_of(Place.TOOL_CALL):
            if one.arguments is not None:
                found[one.name] = float(any(map(one.arguments.rejects, calls)))
            elif one.matcher is not None:
                matcher = one.matcher
                found[one.name] = float(
                    any(matches(matcher, call.words, ended=True) for call in calls)
                )
        return found

    def criterion(self, name: str) -> Criterion | None:
        """Returns the criterion of that name, None for a category."""
        return next((one for one in self.criteria if one.name == name), None)

    def criteria_of(self, *places: Place) -> tuple[Criterion, ...]:
        """Returns the criteria that apply to any of the places."""
        return tuple(one for one in self.criteria if one.applies_to & set(places))

    def refusal_for(self, decision: Decision) -> str:
        """Returns what is said instead of an answer that the decision withholds."""
        return (decision.criterion and decision.criterion.refusal) or self.refusal

    def is_as_strict_as(self, other: "Policy") -> bool:
        """Whether it does at least as much about everything as the other policy."""
        if self.shadow and not other.shadow:
            return False
        if other.tools is not None and not (self.tools and {*self.tools} <= {*other.tools}):
            return False
        criteria, others = (
            {replace(one, refusal=None) for one in policy.criteria} for policy in (self, other)
        )
        if not others <= criteria:
            return False
        return other.shadow or all(
            self.rules[name].is_as_strict_as(rule) for name, rule in other.rules.items()
        )

    def decide(self, verdict: Verdict) -> Decision:
        """Returns the strictest action of the named categories and the criteria that reach their
        thresholds.

        Raises ValueError when the harm reaches `lowest_threshold` but the categories were not read:
        passing such a verdict would release harm unjudged.
        """
        if verdict.category_scores is None and verdict.harm >= self.lowest_threshold:
            raise ValueError("the verdict needs its categories: its harm reaches a threshold")
        harms = (name for name in verdict.named if verdict.harm >= self.rules[name].threshold)
        return self._decision(verdict, (*harms, *self._criteria_flagged(verdict)))

    def decide_on_criteria(self, verdict: Verdict) -> Decision:
        """Returns the strictest action of the criteria that reach their thresholds, whatever the
        harm."""
        return self._decision(verdict, tuple(self._criteria_flagged(verdict)))

    def _decision(self, verdict: Verdict, flagged: tuple[str, ...]) -> Decision:
        if not flagged:
            reason = f"Harm {verdict.harm:.2f} reached no threshold of the policy."
            return Decision(Action.PASS, (), reason)
        action = max((self.rules[name].action for name in flagged), key=STRICTNESS.__getitem__)
        limits = ", ".join(f"{name} ({self.rules[name].threshold:.2f})" for name in flagged)
        reason = f"Harm {verdict.harm:.2f} reached the threshold of {limits}: {action}."
        if any(name in verdict.criteria for name in flagged):
            read = ", ".join(f"{name} {score:.2f}" for name, score in verdict.criteria.items())
            reason = f"Harm {verdict.harm:.2f}, {read} reached the threshold of {limits}: {action}."
        decisive = next(name for name in flagged if self.rules[name].action is action)
        criterion = self.criterion(decisive)
        if self.shadow:
            action, reason = Action.PASS, f"{reason} The policy is in shadow: pass."
        return Decision(action, flagged, reason, criterion)

    def _criteria_flagged(self, verdict: Verdict) -> Iterator[str]:
        for name, probability in verdict.criteria.items():
            if probability >= self.rules[name].threshold:
                yield name
