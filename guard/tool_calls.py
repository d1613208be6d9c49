"""The tool calls in an answer, and what of a policy is looked for in them. Owns their values, their
words and the check of their arguments. Does not find calls in an answer (vllm/call_reader.py) or
decide what follows (policy.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend

from guard.matchers import compiled

ANY_OTHER = "*"
"""Names the tools that have no schema of their own."""

Piece = tuple[str, Sequence[int]]
"""The text and the tokens of a part of an answer."""

_NOT_TAKEN = ("$ref", "$dynamicRef", "patternProperties")
"""References could be fetched from elsewhere; the library reads patterns of names by Python's
expressions."""


@dataclass(frozen=True)
class ToolCall:
    """A call as the client gets it. arguments: JSON, as the model wrote it."""

    name: str
    arguments: str

    @cached_property
    def read_arguments(self) -> Any:
        """The arguments as an object. Raises ValueError when they are not JSON."""
        return json.loads(self.arguments or "{}")

    @cached_property
    def words(self) -> str:
        """The name, then every argument in a line of its own, without JSON's escapes; arguments
        that are not JSON as they are."""
        try:
            lines = list(_lines(self.read_arguments, ""))
        except (ValueError, RecursionError):
            lines = [self.arguments]
        return "\n".join([self.name, *lines])


class CallReader(Protocol):
    """Reads the calls out of an answer.

    expects_calls: whether the request and the server allow calls at all.
    """

    @property
    def expects_calls(self) -> bool:
        """See above."""

    def calls(self, prompt_ids: Sequence[int], pieces: Sequence[Piece]) -> tuple[ToolCall, ...]:
        """Returns the calls in an answer that is sent in these pieces. Raises CriticUnavailable
        when it cannot be read."""


@dataclass(frozen=True)
class ArgumentMatcher:
    """Finds calls with arguments that a policy does not allow.

    schemas: a JSON Schema (draft 2020-12, without references, its patterns in RE2's syntax) for
    each tool, as JSON; "*" for tools without one of their own, which are not looked at if it is
    missing.
    """

    schemas: tuple[tuple[str, str], ...]

    def rejects(self, call: ToolCall) -> bool:
        """Whether the call's arguments do not fit; arguments that are not JSON never do."""
        validator = self._validators.get(call.name, self._validators.get(ANY_OTHER))
        if validator is None:
            return False
        try:
            return not validator.is_valid(call.read_arguments)
        except (ValueError, RecursionError):
            return True

    @cached_property
    def _validators(self) -> Mapping[str, Any]:
        return {tool: _Validator(json.loads(schema)) for tool, schema in self.schemas}


def check_schema(schema: Any) -> None:
    """Raises ValueError for what an ArgumentMatcher does not take."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"it is no JSON Schema: {error.message}") from None
    _check_keywords(schema)


def _check_keywords(schema: object) -> None:
    """Raises ValueError for keywords of JSON Schema that are not taken."""
    if isinstance(schema, list):
        for inner in schema:
            _check_keywords(inner)
    elif isinstance(schema, dict):
        for keyword in _NOT_TAKEN:
            if keyword in schema:
                raise ValueError(f"{keyword} is not taken; write out what it stands for")
        if isinstance(schema.get("pattern"), str):
            compiled(schema["pattern"])
        for inner in schema.values():
            _check_keywords(inner)


def _pattern(
    _validator: object, pattern: str, text: object, _schema: object
) -> Iterator[ValidationError]:
    # Not Python's expressions: their time can be exponential in what the model writes.
    if isinstance(text, str) and not compiled(pattern).search(text):
        yield ValidationError(f"does not match {pattern}")


_Validator = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


def _lines(value: object, name: str) -> Iterator[str]:
    """Yields each value inside with its name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, name)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}: {text}" if name else text
