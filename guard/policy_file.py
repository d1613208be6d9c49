"""The policy file: TOML into a policy, with errors that name the file, the line, the field and the
fix. Owns its fields and their validation. Does not decide anything (policy.py).

policy.toml beside this module documents the fields and is the default policy.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from guard.criteria import NAME, Criterion, CriterionExample, Place
from guard.errors import PolicyInvalid
from guard.matchers import LONGEST, Matcher, PatternMatcher, PersonalDataMatcher, WordMatcher
from guard.policy import Action, Policy, Rule
from guard.redact import PERSONAL_DATA, check_region
from guard.toml_lines import line_of
from guard.verdict import CATEGORIES

DEFAULT_FILE = Path(__file__).with_name("policy.toml")
_RULE_FIELDS = ("threshold", "action")
_MATCHERS = ("words", "pattern", "personal_data")
_CRITERION_FIELDS = (
    *("name", "description", "question", "applies_to"),
    *(*_RULE_FIELDS, "refusal", "examples"),
    *(*_MATCHERS, "longest", "phone_region"),
)
_READ_FIELDS = ("question", "threshold", "examples")
"""Of criteria that the model reads."""

Table = Mapping[str, object]


def load_policy(path: Path | None = None) -> Policy:
    """Returns the policy in the TOML file `path`, or the default policy.

    Raises PolicyInvalid, which names the file, the line, the field and the fix.
    """
    default = _PolicyFile(DEFAULT_FILE)
    base_refusal, base_rule = default.refusal(None), default.default_rule(None)
    source = default if path is None else _PolicyFile(path)
    refusal = source.refusal(base_refusal)
    default_rule = source.default_rule(base_rule)
    criteria = dict(source.criteria(default_rule))
    rules = source.rules(default_rule) | {one.name: rule for one, rule in criteria.items()}
    return Policy(refusal, rules, _hash(refusal, rules, tuple(criteria)), tuple(criteria))


def _hash(refusal: str, rules: Mapping[str, Rule], criteria: tuple[Criterion, ...]) -> str:
    effective: dict[str, object] = {
        "refusal": refusal,
        "rules": {name: [rule.threshold, rule.action] for name, rule in rules.items()},
    }
    if criteria:
        effective["criteria"] = [_fields(one) for one in criteria]
    canonical = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _fields(criterion: Criterion) -> dict[str, object]:
    fields = asdict(criterion) | {"applies_to": sorted(criterion.applies_to)}
    return {name: value for name, value in fields.items() if (name, value) != ("matcher", None)}


class _PolicyFile:
    """A parsed policy file. Each method validates the part that it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text("utf-8-sig")
            self.content: Table = tomllib.loads(self._text)
        except OSError as error:
            raise PolicyInvalid(
                f"{path}: the policy file cannot be read ({error.strerror}); "
                "check the path and its permissions"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PolicyInvalid(f"{path}: not a TOML file in UTF-8: {error}") from error
        self._refuse_unknown(self.content, ("refusal", "default", "categories", "criteria"), "")

    def refusal(self, inherited: str | None) -> str:
        return self._text_of(self.content, "refusal", "refusal", inherited)

    def default_rule(self, inherited: Rule | None) -> Rule:
        table = self._table(self.content, "default", "default")
        self._refuse_unknown(table, _RULE_FIELDS, "default.")
        return self._rule(table, "default", inherited)

    def rules(self, default: Rule) -> dict[str, Rule]:
        tables = self._table(self.content, "categories", "categories")
        self._refuse_unknown(tables, CATEGORIES, "categories.")
        return {name: self._category_rule(tables, name, default) for name in CATEGORIES}

    def _category_rule(self, tables: Table, name: str, default: Rule) -> Rule:
        field = f'categories."{name}"'
        table = self._table(tables, name, field)
        self._refuse_unknown(table, _RULE_FIELDS, f"{field}.")
        return self._rule(table, field, default)

    def criteria(self, default: Rule) -> Iterator[tuple[Criterion, Rule]]:
        names = set(CATEGORIES)
        for field, table in self._tables(self.content, "criteria", "criteria"):
            self._refuse_unknown(table, _CRITERION_FIELDS, f"{field}.")
            criterion = self._criterion(table, field)
            if criterion.name in names:
                raise self._invalid(
                    f"{field}.name", f"{criterion.name!r} is taken; give each criterion its own"
                )
            names.add(criterion.name)
            yield criterion, self._rule(table, field, default)

    def _criterion(self, table: Table, field: str) -> Criterion:
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise self._invalid(
                f"{field}.name",
                f"{name!r} is not a name; write small letters, digits, -, _ and /, such as "
                '"medical-advice"',
            )
        matcher = self._matcher(table, field)
        if matcher is None and ("description" in table) == ("question" in table):
            raise self._invalid(
                field,
                "write either a description or a question, in words, or what to look for: "
                + ", ".join(_MATCHERS),
            )
        return Criterion(
            name=name,
            description=self._text_of(table, "description", f"{field}.description", ""),
            question=self._text_of(table, "question", f"{field}.question", ""),
            applies_to=frozenset(self._places(table, field)),
            refusal=self._text_of(table, "refusal", f"{field}.refusal", "") or None,
            examples=tuple(self._examples(table, field)),
            matcher=matcher,
        )

    def _matcher(self, table: Table, field: str) -> Matcher | None:
        """Returns what finds the criterion in a text, None if the model reads it."""
        given = [name for name in _MATCHERS if name in table]
        for name, of in (("longest", "pattern"), ("phone_region", "personal_data")):
            if name in table and of not in given:
                raise self._invalid(f"{field}.{name}", f"belongs to {of}, which is not there")
        if not given:
            return None
        if len(given) > 1:
            raise self._invalid(f"{field}.{given[1]}", "write a criterion of its own for it")
        for name in _READ_FIELDS:
            if name in table:
                raise self._invalid(
                    f"{field}.{name}", f"remove it: {given[0]} are found without the model"
                )
        try:
            return self._made(given[0], table, field)
        except ValueError as error:
            raise self._invalid(f"{field}.{given[0]}", f"{table[given[0]]!r}: {error}") from error

    def _made(self, kind: str, table: Table, field: str) -> Matcher:
        if kind == "words":
            return WordMatcher(self._texts(table, "words", field))
        if kind == "pattern":
            pattern = self._text_of(table, "pattern", f"{field}.pattern", None)
            return PatternMatcher(pattern, self._longest(table, field))
        kinds = self._texts(table, "personal_data", field)
        for name in kinds:
            if name not in PERSONAL_DATA:
                raise ValueError(f"{name!r} is not one of {', '.join(PERSONAL_DATA)}")
        region = self._text_of(table, "phone_region", f"{field}.phone_region", "")
        return PersonalDataMatcher(kinds, check_region(region) if region else None)

    def _longest(self, table: Table, field: str) -> int:
        value = table.get("longest", LONGEST)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._invalid(f"{field}.longest", f"{value!r} is not a number of characters")
        return value

    def _texts(self, table: Table, key: str, field: str) -> tuple[str, ...]:
        value = table[key]
        if not isinstance(value, list) or not value:
            raise self._invalid(f"{field}.{key}", f"{value!r} is not a list of texts in quotes")
        for text in value:
            if not isinstance(text, str) or not text.strip():
                raise self._invalid(f"{field}.{key}", f"{text!r} is not a text in quotes")
        return tuple(value)

    def _places(self, table: Table, field: str) -> Iterator[Place]:
        places = table.get("applies_to", [Place.OUTPUT])
        known = ", ".join(f'"{place}"' for place in Place)
        if not isinstance(places, list) or not places:
            raise self._invalid(f"{field}.applies_to", f"{places!r} is not a list of {known}")
        for place in places:
            if place not in tuple(Place):
                raise self._invalid(f"{field}.applies_to", f"{place!r} is not one of {known}")
            yield Place(place)

    def _examples(self, table: Table, field: str) -> Iterator[CriterionExample]:
        for place, example in self._tables(table, "examples", f"{field}.examples"):
            self._refuse_unknown(example, ("text", "request", "applies"), f"{place}.")
            applies = example.get("applies")
            if not isinstance(applies, bool):
                raise self._invalid(f"{place}.applies", f"{applies!r} is neither true nor false")
            text = self._text_of(example, "text", f"{place}.text", None)
            request = self._text_of(example, "request", f"{place}.request", "")
            yield CriterionExample(text, applies, request or None)

    def _rule(self, table: Table, field: str, inherited: Rule | None) -> Rule:
        threshold = table.get("threshold", inherited and inherited.threshold)
        action = table.get("action", inherited and inherited.action)
        return Rule(
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

    def _text_of(self, table: Table, key: str, field: str, inherited: str | None) -> str:
        """Returns a text; `inherited` where there is none, unless that is None."""
        if key not in table and inherited is not None:
            return inherited
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self._invalid(field, f"{value!r} is not a text; write a sentence in quotes")
        return value

    def _table(self, parent: Table, key: str, field: str) -> Table:
        value = parent.get(key, {})
        if isinstance(value, dict):
            return value
        raise self._invalid(field, f"{value!r} is not a table; write it under [{field}]")

    def _tables(self, parent: Table, key: str, field: str) -> Iterator[tuple[str, Table]]:
        """Yields the tables of a list, each with the path to it."""
        tables = parent.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise self._invalid(
                field, f"{tables!r} is not a list of tables; write each under [[{field}]]"
            )
        for number, table in enumerate(tables):
            yield f"{field}[{number}]", table

    def _refuse_unknown(self, table: Table, known: tuple[str, ...], prefix: str) -> None:
        for key in table:
            if key not in known:
                raise self._invalid(
                    prefix + key, f"unknown; remove it or use one of {', '.join(known)}"
                )

    def _invalid(self, field: str, problem: str) -> PolicyInvalid:
        line = line_of(self._text, field)
        place = f"{self.path}: line {line}" if line else str(self.path)
        return PolicyInvalid(f"{place}: {field}: {problem}")
