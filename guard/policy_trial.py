"""What another policy would have done to answers that were flagged. Owns the comparison. Reads no
flag and no label: what the critic read then is decided on again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from guard.criteria import Place
from guard.matchers import matches
from guard.policy import Action, Policy
from guard.store.flags import StoredFlag
from guard.verdict import CATEGORIES, Verdict


@dataclass
class Change:
    """Flags with one action that another policy gives one action: how many, and how many of them
    a reviewer confirmed or dismissed. flags: their numbers."""

    flags: list[int] = field(default_factory=list)
    confirmed: int = 0
    dismissed: int = 0


@dataclass(frozen=True)
class Trial:
    """changes: by the action that was taken and the one that would be. unread: how many flags have
    no probability of a criterion of the policy, by criterion."""

    changes: Mapping[tuple[Action, Action], Change]
    unread: Mapping[str, int]

    @property
    def flags(self) -> int:
        """How many flags were decided on again."""
        return sum(len(change.flags) for change in self.changes.values())


def try_policy(policy: Policy, flags: Iterable[StoredFlag]) -> Trial:
    """Decides on flags again. A criterion that was not read then counts as not applying."""
    changes: dict[tuple[Action, Action], Change] = {}
    unread: Counter[str] = Counter()
    for flag in flags:
        verdict = verdict_of(flag, policy)
        unread.update({one.name for one in policy.criteria} - verdict.criteria.keys())
        change = changes.setdefault((flag.action, policy.decide(verdict).action), Change())
        change.flags.append(flag.id)
        change.confirmed += flag.review == "confirmed"
        change.dismissed += flag.review == "dismissed"
    return Trial(changes, unread)


def verdict_of(flag: StoredFlag, policy: Policy) -> Verdict:
    """Returns what was read of a flag, as far as the policy has a rule for it, and what is found in
    its answer. Of an answer that only a criterion flagged the categories were not read; its harm
    counts as none."""
    scores = flag.category_scores
    criteria = {one.name: scores[one.name] for one in policy.criteria if one.name in scores}
    for one in policy.criteria:
        if one.matcher is not None and Place.OUTPUT in one.applies_to:
            criteria[one.name] = float(matches(one.matcher, flag.answer, ended=True))
    if not scores.keys() & set(CATEGORIES):
        return Verdict(0.0, dict.fromkeys(CATEGORIES, 0.0), criteria=criteria)
    categories = {name: scores.get(name, 0.0) for name in CATEGORIES}
    return Verdict(flag.harm, categories, criteria=criteria)
