"""The criteria of a policy file. Owns their fields and the validation of these. Does not own their
rules, which are those of categories (policy_file.py).
"""

import json
import re
from collections.abc import Iterator

from guard.criteria import NAME, Criterion, CriterionExample, Place
from guard.languages import known_languages
from guard.matchers import (
    LONGEST,
    LanguageMatcher,
    LengthMatcher,
    Matcher,
    PatternMatcher,
    PersonalDataMatcher,
    WordMatcher,
)
from guard.policy_fields import Fields
from guard.redact import PERSONAL_DATA, check_region
from guard.tool_calls import ArgumentMatcher, check_schema

_MATCHERS = ("words", "pattern", "personal_data", "max_characters", "languages")
_WITHOUT_MODEL = (*_MATCHERS, "arguments")
FIELDS = (
    *("name", "description", "question", "applies_to", "refusal", "examples"),
    *(*_WITHOUT_MODEL, "longest", "phone_region"),
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
    found = _found(fields)
    arguments = found if isinstance(found, ArgumentMatcher) else None
    if found is None and ("description" in fields.table) == ("question" in fields.table):
        raise fields.invalid(
            "",
            "write either a description or a question, in words, or what to look for: "
            + ", ".join(_WITHOUT_MODEL),
        )
    return Criterion(
        name=name,
        description=fields.string("description", ""),
        question=fields.string("question", ""),
        applies_to=frozenset(_places(fields)),
        refusal=fields.string("refusal", "") or None,
        examples=tuple(_examples(fields)),
        matcher=None if isinstance(found, ArgumentMatcher) else found,
        arguments=arguments,
    )


def _places(fields: Fields) -> Iterator[Place]:
    allowed = _allowed_places(fields)
    places = fields.table.get("applies_to", allowed[:1])
    known = ", ".join(f'"{place}"' for place in allowed)
    if not isinstance(places, list | tuple) or not places:
        raise fields.invalid("applies_to", f"{places!r} is not a list of {known}")
    for place in places:
        if place not in allowed:
            raise fields.invalid("applies_to", f"{place!r} is not one of {known}")
        yield Place(place)


def _allowed_places(fields: Fields) -> tuple[Place, ...]:
    if "arguments" in fields.table:
        return (Place.TOOL_CALL,)
    if "languages" in fields.table:
        # Names and arguments of tools are in no language.
        return (Place.OUTPUT, Place.INPUT, Place.TOOL_RESULT)
    return tuple(Place)


def _examples(fields: Fields) -> Iterator[CriterionExample]:
    for example in fields.children("examples"):
        example.refuse_unknown(("text", "request", "applies"))
        applies = example.boolean("applies", None)
        request = example.string("request", "") or None
        yield CriterionExample(example.string("text", None), applies, request)


def _found(fields: Fields) -> Matcher | ArgumentMatcher | None:
    """Returns what finds the criterion in a text or a tool call, None if the model reads it."""
    given = [name for name in _WITHOUT_MODEL if name in fields.table]
    for name, of in (("longest", "pattern"), ("phone_region", "personal_data")):
        if name in fields.table and of not in given:
            raise fields.invalid(name, f"belongs to {of}, which is not there")
    if not given:
        return None
    if len(given) > 1:
        raise fields.invalid(given[1], "write a criterion of its own for it")
    for name in _READ_FIELDS:
        if name in fields.table:
            raise fields.invalid(
                name, f"remove it: the model does not read a criterion of {given[0]}"
            )
    try:
        return _made(given[0], fields)
    except ValueError as error:
        raise fields.invalid(given[0], f"{fields.table[given[0]]!r}: {error}") from error


def _made(kind: str, fields: Fields) -> Matcher | ArgumentMatcher:
    if kind == "arguments":
        return ArgumentMatcher(tuple(_schemas(fields.child("arguments"))))
    if kind == "words":
        return WordMatcher(fields.strings("words"))
    if kind == "pattern":
        return PatternMatcher(
            fields.string("pattern", None), _characters(fields, "longest", LONGEST)
        )
    if kind == "max_characters":
        return LengthMatcher(_characters(fields, "max_characters"))
    if kind == "languages":
        return LanguageMatcher(_languages(fields))
    return _personal_data(fields)


def _languages(fields: Fields) -> tuple[str, ...]:
    languages = fields.strings("languages")
    for language in languages:
        if language not in known_languages():
            raise ValueError(
                f"{language!r} is no language that can be told apart; write its code of ISO 639-1 "
                'in small letters, such as "en" or "de"'
            )
    return languages


def _personal_data(fields: Fields) -> PersonalDataMatcher:
    kinds = fields.strings("personal_data")
    for name in kinds:
        if name not in PERSONAL_DATA:
            raise ValueError(f"{name!r} is not one of {', '.join(PERSONAL_DATA)}")
    region = fields.string("phone_region", "")
    return PersonalDataMatcher(kinds, check_region(region) if region else None)


def _schemas(arguments: Fields) -> Iterator[tuple[str, str]]:
    """Yields each tool and its schema as JSON."""
    if not arguments.table:
        raise arguments.invalid(
            "", 'write a JSON Schema for a tool, or for "*", which is any other'
        )
    for tool, schema in arguments.table.items():
        try:
            check_schema(schema)
        except ValueError as error:
            raise arguments.invalid(tool, str(error)) from error
        # A date of TOML's is none of JSON's values.
        yield tool, json.dumps(schema, default=str)


def _characters(fields: Fields, key: str, inherited: int | None = None) -> int:
    value = fields.table.get(key, inherited)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise fields.invalid(key, f"{value!r} is not a number of characters; write e.g. {LONGEST}")
    return value
