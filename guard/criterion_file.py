"""The criteria of a policy file. Owns their fields and the validation of these. Does not own their
rules, which are those of categories (policy_file.py).
"""

import re
from collections.abc import Iterator

from guard.criteria import NAME, Criterion, CriterionExample, Place
from guard.matchers import LONGEST, Matcher, PatternMatcher, PersonalDataMatcher, WordMatcher
from guard.policy_fields import Fields
from guard.redact import PERSONAL_DATA, check_region

_MATCHERS = ("words", "pattern", "personal_data")
FIELDS = (
    *("name", "description", "question", "applies_to", "refusal", "examples"),
    *(*_MATCHERS, "longest", "phone_region"),
)
_READ_FIELDS = ("question", "threshold", "examples")
"""Of criteria that the model reads."""


def criterion_of(fields: Fields) -> Criterion:
    """Returns a criterion. Raises PolicyInvalid."""
    name = fields.table.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise fields.invalid(
            "name",
            f"{name!r} is not a name; write small letters, digits, -, _ and /, such as "
            '"medical-advice"',
        )
    matcher = _matcher(fields)
    if matcher is None and ("description" in fields.table) == ("question" in fields.table):
        raise fields.invalid(
            "",
            "write either a description or a question, in words, or what to look for: "
            + ", ".join(_MATCHERS),
        )
    return Criterion(
        name=name,
        description=fields.string("description", ""),
        question=fields.string("question", ""),
        applies_to=frozenset(_places(fields)),
        refusal=fields.string("refusal", "") or None,
        examples=tuple(_examples(fields)),
        matcher=matcher,
    )


def _places(fields: Fields) -> Iterator[Place]:
    places = fields.table.get("applies_to", [Place.OUTPUT])
    known = ", ".join(f'"{place}"' for place in Place)
    if not isinstance(places, list) or not places:
        raise fields.invalid("applies_to", f"{places!r} is not a list of {known}")
    for place in places:
        if place not in tuple(Place):
            raise fields.invalid("applies_to", f"{place!r} is not one of {known}")
        yield Place(place)


def _examples(fields: Fields) -> Iterator[CriterionExample]:
    for example in fields.children("examples"):
        example.refuse_unknown(("text", "request", "applies"))
        applies = example.boolean("applies", None)
        request = example.string("request", "") or None
        yield CriterionExample(example.string("text", None), applies, request)


def _matcher(fields: Fields) -> Matcher | None:
    """Returns what finds the criterion in a text, None if the model reads it."""
    given = [name for name in _MATCHERS if name in fields.table]
    for name, of in (("longest", "pattern"), ("phone_region", "personal_data")):
        if name in fields.table and of not in given:
            raise fields.invalid(name, f"belongs to {of}, which is not there")
    if not given:
        return None
    if len(given) > 1:
        raise fields.invalid(given[1], "write a criterion of its own for it")
    for name in _READ_FIELDS:
        if name in fields.table:
            raise fields.invalid(name, f"remove it: {given[0]} are found without the model")
    try:
        return _made(given[0], fields)
    except ValueError as error:
        raise fields.invalid(given[0], f"{fields.table[given[0]]!r}: {error}") from error


def _made(kind: str, fields: Fields) -> Matcher:
    if kind == "words":
        return WordMatcher(fields.strings("words"))
    if kind == "pattern":
        return PatternMatcher(fields.string("pattern", None), _longest(fields))
    kinds = fields.strings("personal_data")
    for name in kinds:
        if name not in PERSONAL_DATA:
            raise ValueError(f"{name!r} is not one of {', '.join(PERSONAL_DATA)}")
    region = fields.string("phone_region", "")
    return PersonalDataMatcher(kinds, check_region(region) if region else None)


def _longest(fields: Fields) -> int:
    value = fields.table.get("longest", LONGEST)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise fields.invalid("longest", f"{value!r} is not a number of characters")
    return value
