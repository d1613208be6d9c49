"""What to do about a verdict. Owns the policy file, its validation and the decision. Does not
compute probabilities (critic.py) or carry the decision out (engine.py).

policy.toml beside this module documents the file's fields and is the default policy.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from guard.errors import PolicyInvalid
from guard.verdict import CATEGORIES, Verdict

DEFAULT_FILE = Path(__file__).with_name("policy.toml")


class Action(StrEnum):
    """What is done with an answer, from the most lenient to the strictest."""

    PASS = "pass"
    ANNOTATE = "annotate"
    REVISE = "revise"
    BLOCK = "block"


STRICTNESS: Mapping[Action, int] = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True)
class CategoryRule:
    """Applies `action` when the probability of harm reaches `threshold`, in [0, 1]."""

    threshold: float
    action: Action


@dataclass(frozen=True)
class Decision:
    """categories: those that reached their thresholds. reason: never quotes the answer."""

    action: Action
    categories: tuple[str, ...]
    reason: str

    @property
    def flagged(self) -> bool:
        """Whether any category reached its threshold, whatever the action."""
        return bool(self.categories)


@dataclass(frozen=True)
class Policy:
    """A rule for each of the 13 categories, and the refusal sent instead of a blocked answer.

    hash: 16 hex digits that change with any rule or the refusal; stored with each flag.
    """

    refusal: str
    rules: Mapping[str, CategoryRule]
    hash: str

    @cached_property
    def lowest_threshold(self) -> float:
        """Below this harm no rule applies, so the categories need not be read."""
        return min(rule.threshold for rule in self.rules.values())

    def decide(self, verdict: Verdict) -> Decision:
        """Returns the strictest action of the named categories that reach their thresholds.

        Raises ValueError when the harm reaches `lowest_threshold` but the categories were not read:
        passing such a verdict would release harm unjudged.
        """
        if verdict.category_scores is None and verdict.harm >= self.lowest_threshold:
            raise ValueError("the verdict needs its categories: its harm reaches a threshold")
        flagged = tuple(
            name for name in verdict.named if verdict.harm >= self.rules[name].threshold
        )
        if not flagged:
            reason = f"Harm {verdict.harm:.2f} reached no threshold of the policy."
            return Decision(Action.PASS, (), reason)
        action = max((self.rules[name].action for name in flagged), key=STRICTNESS.__getitem__)
        limits = ", ".join(f"{name} ({self.rules[name].threshold:.2f})" for name in flagged)
        reason = f"Harm {verdict.harm:.2f} reached the threshold of {limits}: {action}."
        return Decision(action, flagged, reason)


def load_policy(path: Path | None = None) -> Policy:
    """Returns the policy in the TOML file `path`, or the default policy.

    Raises PolicyInvalid, which names the file, the field and the fix.
    """
    default = _PolicyFile(DEFAULT_FILE)
    base_refusal, base_rule = default.refusal(None), default.default_rule(None)
    source = default if path is None else _PolicyFile(path)
    refusal = source.refusal(base_refusal)
    rules = source.rules(source.default_rule(base_rule))
    return Policy(refusal, rules, _hash(refusal, rules))


def _hash(refusal: str, rules: Mapping[str, CategoryRule]) -> str:
    effective = {
        "refusal": refusal,
        "rules": {name: [rule.threshold, rule.action] for name, rule in rules.items()},
    }
    canonical = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _PolicyFile:
    """A parsed policy file. Each method validates the part that it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content: dict[str, object] = tomllib.loads(path.read_text("utf-8-sig"))
        except OSError as error:
            raise PolicyInvalid(
                f"{path}: the policy file cannot be read ({error.strerror}); "
                "check the path and its permissions"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PolicyInvalid(f"{path}: not a TOML file in UTF-8: {error}") from error
        self._refuse_unknown(self.content, ("refusal", "default", "categories"), "")

    def refusal(self, inherited: str | None) -> str:
        value = self.content.get("refusal", inherited)
        if not isinstance(value, str) or not value.strip():
            raise self._invalid("refusal", f"{value!r} is not a text; write a sentence in quotes")
        return value

    def default_rule(self, inherited: CategoryRule | None) -> CategoryRule:
        return self._rule(self.content, "default", "default", inherited)

    def rules(self, default: CategoryRule) -> dict[str, CategoryRule]:
        tables = self._table(self.content, "categories", "categories")
        self._refuse_unknown(tables, CATEGORIES, "categories.")
        return {
            name: self._rule(tables, name, f'categories."{name}"', default) for name in CATEGORIES
        }

    def _rule(
        self, parent: Mapping[str, object], key: str, field: str, inherited: CategoryRule | None
    ) -> CategoryRule:
        table = self._table(parent, key, field)
        self._refuse_unknown(table, ("threshold", "action"), f"{field}.")
        threshold = table.get("threshold", inherited and inherited.threshold)
        action = table.get("action", inherited and inherited.action)
        return CategoryRule(
            self._threshold(threshold, f"{field}.threshold"),
            self._action(action, f"{field}.action"),
        )

    def _threshold(self, value: object, field: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        raise self._invalid(field, f"{value!r} is not a number from 0 to 1; write e.g. 0.5")

    def _action(self, value: object, field: str) -> Action:
        if isinstance(value, str) and value in tuple(Action):
            return Action(value)
        known = ", ".join(f'"{action}"' for action in Action)
        raise self._invalid(field, f"{value!r} is not an action; write one of {known}")

    def _table(self, parent: Mapping[str, object], key: str, field: str) -> dict[str, object]:
        value = parent.get(key, {})
        if isinstance(value, dict):
            return value
        raise self._invalid(field, f"{value!r} is not a table; write it under [{field}]")

    def _refuse_unknown(
        self, table: Mapping[str, object], known: tuple[str, ...], prefix: str
    ) -> None:
        for key in table:
            if key not in known:
                raise self._invalid(
                    prefix + key, f"unknown; remove it or use one of {', '.join(known)}"
                )

    def _invalid(self, field: str, problem: str) -> PolicyInvalid:
        return PolicyInvalid(f"{self.path}: {field}: {problem}")
