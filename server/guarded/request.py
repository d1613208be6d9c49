"""Reads what the guard needs from a request's body: the user and the moderation that the caller
wants. Owns this for each API. Leaves the conversation to conversation.py and all other validation
to vLLM.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.call import GuardCall, StreamMode
from server.errors import BadRequest
from server.guarded.conversation import conversation

MODERATION_ALIASES: frozenset[str] = frozenset(
    {
        "omni-moderation-2024-09-26",
        "omni-moderation-latest",
        "text-moderation-007",
        "text-moderation-latest",
        "text-moderation-stable",
    }
)
"""OpenAI's moderation model names. All of them mean the served model's own critique."""


STREAM_HEADER = "x-setback-stream"
"""The request header with the stream mode that the caller wants."""

_SESSION = re.compile(r"_session_[0-9a-fA-F-]{8,}$")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON_FORMATS = ("json_object", "json_schema")
_SHOULD_BE = re.compile("^Input should be ")
_TYPE_NAME = re.compile(r"\[|^str$|^[A-Z]\w*$")


class _Side(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mode: Literal["score", "block"]


class _Policy(BaseModel):
    model_config = ConfigDict(extra="forbid")
    input: _Side | None = None
    output: _Side | None = None


class _Moderation(BaseModel):
    """The request field `moderation`, as the openai package sends it."""

    model_config = ConfigDict(extra="forbid")
    model: str
    policy: _Policy | None = None

    def blocks(self, side: Literal["input", "output"]) -> bool:
        side_policy: _Side | None = getattr(self.policy, side, None)
        return side_policy is not None and side_policy.mode == "block"


class _Function(BaseModel):
    name: Any


class _Tool(BaseModel):
    function: _Function


class _CheckedShape(BaseModel):
    """Fields that vLLM reads without validation, and fails on when they have another type."""

    structured_outputs: dict[str, Any] | None = None


class _CheckedShapeWithTool(_CheckedShape):
    """The same for a request that names one of its tools."""

    tools: list[_Tool] | None = None


def parse_body(body: bytes) -> dict[str, Any]:
    """Returns a request's JSON object. Raises BadRequest for anything else."""
    try:
        content = json.loads(body.decode("utf-8-sig"))
        if _SURROGATE_ESCAPE.search(body):
            # A lone surrogate is not valid text for vLLM's engine or any database.
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"The body is not JSON in UTF-8: {error}.", "body", "invalid_json"
        ) from error
    if not isinstance(content, dict):
        raise BadRequest("The body must be a JSON object.", "body", "invalid_type")
    return content


def bad_field(error: ValidationError, prefix: str = "") -> BadRequest:
    """Returns the wrong field with its path in the body. For unions, the most specific error, and
    with it all types that the field may have."""
    most_specific = max(
        error.errors(), key=lambda item: (item["type"] != "string_type", len(item["loc"]))
    )
    path, problem = _path_of(most_specific["loc"]), most_specific["msg"]
    if _SHOULD_BE.match(problem):
        types = [item["msg"] for item in error.errors() if _path_of(item["loc"]) == path]
        problem = " or ".join(
            dict.fromkeys([types[0], *(_SHOULD_BE.sub("", t) for t in types[1:])])
        )
    field = ".".join([*([prefix] if prefix else []), *path])
    return BadRequest(f"{field}: {problem.removeprefix('Value error, ')}.", field)


def _path_of(location: Iterable[int | str]) -> list[str]:
    """Returns a path without the type names of unions, which Pydantic includes."""
    return [str(step) for step in location if not _TYPE_NAME.search(str(step))]


def read_call(route: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> GuardCall:
    """Returns the guard's view of one request.

    Raises BadRequest when `moderation` is malformed, when the stream header has an unknown mode, or
    when vLLM would fail with an internal error. All other validation is left to vLLM.
    """
    _check_shape(body)
    moderation = _moderation(body)
    read = conversation(body)
    return GuardCall(
        route=route,
        messages=read.messages,
        open_turn=read.open_turn,
        tool_results=read.tool_results,
        user=_user(body),
        wants_moderation=moderation is not None,
        block_input=moderation is not None and moderation.blocks("input"),
        block_output=moderation is not None and moderation.blocks("output"),
        wants_json=_wants_json(body),
        stream=_stream_mode(headers.get(STREAM_HEADER)),
    )


def _wants_json(body: Mapping[str, Any]) -> bool:
    """Whether the answer has to be JSON: as OpenAI's APIs ask for it, or by vLLM's own field."""
    text = body.get("text")
    formats = (body.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    if any(isinstance(one, dict) and one.get("type") in _JSON_FORMATS for one in formats):
        return True
    constraint = body.get("structured_outputs") or {}
    return bool(constraint.get("json") or constraint.get("json_object"))


def check_moderation_model(name: str, served: Iterable[str], param: str) -> None:
    """Raises BadRequest unless `name` is one of OpenAI's names or the served model's."""
    if name not in MODERATION_ALIASES and name not in served:
        known = ", ".join(sorted(MODERATION_ALIASES | set(served)))
        raise BadRequest(f"Unknown model {name!r}; use one of {known}.", param, "model_not_found")


def _check_shape(body: Mapping[str, Any]) -> None:
    choice = body.get("tool_choice")
    names_tool = isinstance(choice, dict) and "function" in choice
    try:
        (_CheckedShapeWithTool if names_tool else _CheckedShape).model_validate(body)
    except ValidationError as error:
        raise bad_field(error) from error
    items = body.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("role") == "assistant" and _lacks_text(item):
            field = f"input.{number}.content"
            raise BadRequest(f"{field}: an earlier answer must begin with its text.", field)


def _lacks_text(item: Mapping[str, Any]) -> bool:
    """Whether an assistant item in the input of /v1/responses is one that vLLM fails on."""
    content = item.get("content")
    if not isinstance(content, list):
        return False
    if not content:
        return "id" in item
    return isinstance(content[0], dict) and content[0].get("type") == "refusal"


def _stream_mode(value: str | None) -> StreamMode | None:
    if value is None:
        return None
    if value in tuple(StreamMode):
        return StreamMode(value)
    known = ", ".join(StreamMode)
    raise BadRequest(f"{STREAM_HEADER}: unknown mode {value!r}; use one of {known}.", STREAM_HEADER)


def _moderation(body: Mapping[str, Any]) -> _Moderation | None:
    value = body.get("moderation")
    if value is None:
        return None
    try:
        return _Moderation.model_validate(value)
    except ValidationError as error:
        raise bad_field(error, "moderation") from error


def _user(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("metadata")
    candidates = (
        body.get("safety_identifier"),
        body.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    )
    named = next((name for name in candidates if isinstance(name, str) and name), None)
    return named and _without_session(named)


def _without_session(name: str) -> str:
    """Returns the part of a user's name that stays the same. Coding agents add the session, as a
    suffix or as a field of a JSON object; hashed with it, one user would be many."""
    try:
        fields = json.loads(name)
    except ValueError:
        fields = None
    if isinstance(fields, dict) and fields.pop("session_id", None) and fields:
        return json.dumps(fields, sort_keys=True)
    return _SESSION.sub("", name) or name
