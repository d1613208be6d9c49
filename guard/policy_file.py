"""The policy file: TOML into policies, with errors that name the file, the line, the field and the
fix. Owns its fields, and how a policy extends another one. Does not decide anything (policy.py) or
choose a request's policy (policies.py).

policy.toml beside this module documents the fields and is the default policy.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from guard import criterion_file
from guard.criteria import NAME, Criterion, Place
from guard.errors import PolicyInvalid
from guard.matchers import SpanMatcher
from guard.policies import PolicySet
from guard.policy import DEFAULT_POLICY, Action, Policy, Rule
from guard.policy_fields import Fields, Table
from guard.shipped_criteria import with_shipped
from guard.verdict import CATEGORIES

DEFAULT_FILE = Path(__file__).with_name("policy.toml")
_RULE_FIELDS = ("threshold", "action")
_POLICY_FIELDS = ("refusal", "default", "categories", "criteria", "shadow", "tools")
_NAMED_FIELDS = (*_POLICY_FIELDS, "extends", "models", "routes")


def load_policy(path: Path | None = None) -> Policy:
    """Returns the policy of requests that get no other. Raises as `load_policies`."""
    return load_policies(path).default


def load_policies(path: Path | None = None) -> PolicySet:
    """Returns the policies in the TOML file `path`, or the default policy alone. Raises as
    `parse_policies`, also when the file cannot be read."""
    return parse_policies(default_text() if path is None else read_text(path), str(path))


@cache
def default_text() -> str:
    """Returns the text of the default policy."""
    return read_text(DEFAULT_FILE)


def read_text(path: Path) -> str:
    """Returns a policy file's text. Raises PolicyInvalid when it cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise PolicyInvalid(
            f"{path}: the policy file cannot be read ({error.strerror}); "
            "check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{path}: not a TOML file in UTF-8: {error}") from error


def parse_policies(text: str, source: str) -> PolicySet:
    """Returns the policies in a text.

    source: where it is from, for errors. Raises PolicyInvalid, which names the source, the line,
    the field and the fix.
    """
    file = _parsed(text, source)
    file.refuse_unknown((*_POLICY_FIELDS, "policies"))
    own = {name: value for name, value in file.table.items() if name != "policies"}
    base = _parsed(default_text(), str(DEFAULT_FILE))
    tables = {DEFAULT_POLICY: _extended(base.table, Fields(source, text, own))}
    default = _policy(Fields(source, text, tables[DEFAULT_POLICY]), DEFAULT_POLICY)
    named: dict[str, Policy] = {}
    assigned: dict[str, dict[str, str]] = {"models": {}, "routes": {}}
    for name, fields in _named(file.child("policies")):
        parent = fields.string("extends", DEFAULT_POLICY)
        if parent not in tables:
            raise fields.invalid(
                "extends", f"{parent!r} is none of the policies before it: {', '.join(tables)}"
            )
        tables[name] = _extended(tables[parent], fields)
        named[name] = _policy(Fields(source, text, tables[name], fields.place), name)
        _assign(assigned, fields, name)
    return PolicySet(default, named, assigned["models"], assigned["routes"])


def _parsed(text: str, source: str) -> Fields:
    try:
        return Fields(source, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid(f"{source}: not a TOML file in UTF-8: {error}") from error


def _named(policies: Fields) -> Iterator[tuple[str, Fields]]:
    for name in policies.table:
        if not re.fullmatch(NAME, name) or name == DEFAULT_POLICY:
            raise policies.invalid(
                name, f'{name!r} is no name; write small letters, digits, -, _ and /, as in "kids"'
            )
        fields = policies.child(name)
        fields.refuse_unknown(_NAMED_FIELDS)
        yield name, fields


def _assign(assigned: Mapping[str, dict[str, str]], fields: Fields, name: str) -> None:
    """Notes which models and routes the policy is for."""
    for kind, taken in assigned.items():
        for one in fields.strings(kind) if kind in fields.table else ():
            if one in taken:
                raise fields.invalid(kind, f"{one!r} has the policy {taken[one]!r} already")
            taken[one] = name


def _extended(parent: Table, fields: Fields) -> dict[str, Any]:
    """Returns the parent's fields with these over them; of rules and criteria field by field."""
    merged: dict[str, Any] = {**parent, **fields.table}
    inherited = Fields(fields.source, fields.text, parent)
    merged["default"] = {**inherited.child("default").table, **fields.child("default").table}
    categories = inherited.child("categories")
    own = fields.child("categories")
    own.refuse_unknown(CATEGORIES)
    merged["categories"] = {
        name: {**categories.child(name).table, **own.child(name).table}
        for name in dict.fromkeys((*categories.table, *own.table))
    }
    rest = {one.table.get("name"): one.table for one in inherited.children("criteria")}
    # Its own come first, so that their places are those in the file.
    own_criteria = map(with_shipped, fields.children("criteria"))
    merged["criteria"] = [{**rest.pop(one.get("name"), {}), **one} for one in own_criteria]
    merged["criteria"] += rest.values()
    return merged


def _policy(fields: Fields, name: str) -> Policy:
    refusal = fields.string("refusal", None)
    default = _rule(fields.child("default"), None)
    categories = fields.child("categories")
    criteria = dict(_criteria(fields, default))
    rules = {each: _rule(categories.child(each), default) for each in CATEGORIES}
    rules |= {one.name: rule for one, rule in criteria.items()}
    shadow = fields.boolean("shadow", False)
    tools = fields.strings("tools") if "tools" in fields.table else None
    extras = {"shadow": shadow, "tools": tools}
    policy_hash = _hash(refusal, rules, tuple(criteria), extras)
    return Policy(refusal, rules, policy_hash, tuple(criteria), name, shadow, tools)


def _criteria(fields: Fields, default: Rule) -> Iterator[tuple[Criterion, Rule]]:
    names = set(CATEGORIES)
    for table in fields.children("criteria"):
        table.refuse_unknown((*criterion_file.FIELDS, *_RULE_FIELDS))
        criterion = criterion_file.criterion_of(table)
        if criterion.name in names:
            raise table.invalid("name", f"{criterion.name!r} is taken; give each criterion its own")
        names.add(criterion.name)
        rule = _rule(table, default, extra=True)
        _check_mask(table, criterion, rule)
        yield criterion, rule


def _check_mask(fields: Fields, criterion: Criterion, rule: Rule) -> None:
    if rule.action is not Action.MASK:
        return
    if not isinstance(criterion.matcher, SpanMatcher):
        raise fields.invalid(
            "action",
            '"mask" is for words, patterns and personal data, which are found in a place; write '
            'another action, such as "block"',
        )
    if not criterion.applies_to <= {Place.OUTPUT, Place.INPUT}:
        raise fields.invalid(
            "applies_to",
            'answers and requests alone are masked; write "output", "input" or both where the '
            'action is "mask"',
        )


def _rule(fields: Fields, inherited: Rule | None, *, extra: bool = False) -> Rule:
    if not extra:
        fields.refuse_unknown(_RULE_FIELDS)
    threshold = fields.table.get("threshold", inherited and inherited.threshold)
    action = fields.table.get("action", inherited and inherited.action)
    if isinstance(threshold, bool) or not (
        isinstance(threshold, int | float) and 0 <= threshold <= 1
    ):
        raise fields.invalid(
            "threshold", f"{threshold!r} is not a number from 0 to 1; write e.g. 0.5"
        )
    actions = [one for one in Action if extra or one is not Action.MASK]
    if not isinstance(action, str) or action not in actions:
        known = ", ".join(f'"{action}"' for action in actions)
        raise fields.invalid("action", f"{action!r} is not an action; write one of {known}")
    return Rule(float(threshold), Action(action))


def _hash(
    refusal: str,
    rules: Mapping[str, Rule],
    criteria: Sequence[Criterion],
    extras: Mapping[str, object],
) -> str:
    """Returns the hash of what is in force. extras: left out where they are not set, so that a file
    without them has the hash that it had before there were any."""
    effective: dict[str, object] = {
        "refusal": refusal,
        "rules": {name: [rule.threshold, rule.action] for name, rule in rules.items()},
    }
    if criteria:
        effective["criteria"] = [_values(one) for one in criteria]
    effective |= {name: value for name, value in extras.items() if value}
    canonical = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _values(criterion: Criterion) -> dict[str, object]:
    values = asdict(criterion) | {"applies_to": sorted(criterion.applies_to)}
    later = ("matcher", "arguments")
    return {name: value for name, value in values.items() if name not in later or value is not None}
