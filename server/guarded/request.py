"""Reads what the guard needs to know from a request's body: who asks, what was said, and how much
moderation the caller wants. Owns that reading for each API; leaves all else to vLLM.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.call import GuardCall, Message, StreamMode
from server.errors import BadRequest

MODERATION_ALIASES: frozenset[str] = frozenset(
    {
        "omni-moderation-2024-09-26",
        "omni-moderation-latest",
        "text-moderation-007",
        "text-moderation-latest",
        "text-moderation-stable",
    }
)
"""OpenAI's moderation model names, all meaning the served model's own critique."""


STREAM_HEADER = "x-setback-stream"
"""How strictly a caller wants its stream held back."""

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
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
        asked: _Side | None = getattr(self.policy, side, None)
        return asked is not None and asked.mode == "block"


class _Function(BaseModel):
    name: Any


class _Tool(BaseModel):
    function: _Function


class _Constrained(BaseModel):
    """What vLLM's own checks take for granted of any request, and fail on where it is not so."""

    structured_outputs: dict[str, Any] | None = None


class _WithNamedTool(_Constrained):
    """The same of a request that names one of its tools."""

    tools: list[_Tool] | None = None


def parse_body(body: bytes) -> dict[str, Any]:
    """A request's JSON object; raises BadRequest when it is none."""
    try:
        content = json.loads(body.decode("utf-8-sig"))
        if _HALF_CHARACTER.search(body):
            # Half of one alone is no text: neither vLLM's engine nor any database takes it.
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"The body is not JSON in UTF-8: {error}.", "body", "invalid_json"
        ) from error
    if not isinstance(content, dict):
        raise BadRequest("The body must be a JSON object.", "body", "invalid_type")
    return content


def bad_field(error: ValidationError, prefix: str = "") -> BadRequest:
    """The wrong field by its path in the body; of a union's complaints the most specific."""
    worst = max(error.errors(), key=lambda item: (item["type"] != "string_type", len(item["loc"])))
    # A union's branches stand in the path by their types' names.
    steps = [str(step) for step in worst["loc"] if not _TYPE_NAME.search(str(step))]
    where = ".".join([*([prefix] if prefix else []), *steps])
    return BadRequest(f"{where}: {worst['msg'].removeprefix('Value error, ')}.", where)


def read_call(route: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> GuardCall:
    """The guard's view of one request.

    Raises BadRequest when `moderation` is not as OpenAI defines it, or the stream header names no
    mode, or vLLM would fail. Everything else that is wrong with the body is left for vLLM to say.
    """
    _check_shape(body)
    moderation = _moderation(body)
    return GuardCall(
        route=route,
        messages=list(_messages(body)),
        user=_user(body),
        wants_moderation=moderation is not None,
        block_input=moderation is not None and moderation.blocks("input"),
        block_output=moderation is not None and moderation.blocks("output"),
        stream=_stream_mode(headers.get(STREAM_HEADER)),
    )


def check_moderation_model(name: str, served: Iterable[str], param: str) -> None:
    """Raises BadRequest unless `name` is one of OpenAI's names or the served model's."""
    if name not in MODERATION_ALIASES and name not in served:
        known = ", ".join(sorted(MODERATION_ALIASES | set(served)))
        raise BadRequest(f"Unknown model {name!r}; use one of {known}.", param, "model_not_found")


def _check_shape(body: Mapping[str, Any]) -> None:
    choice = body.get("tool_choice")
    named = isinstance(choice, dict) and "function" in choice
    try:
        (_WithNamedTool if named else _Constrained).model_validate(body)
    except ValidationError as error:
        raise bad_field(error) from error
    items = body.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("role") == "assistant" and _lacks_text(item):
            where = f"input.{number}.content"
            raise BadRequest(f"{where}: an earlier answer must begin with its text.", where)


def _lacks_text(item: Mapping[str, Any]) -> bool:
    """Whether an answer among the input of /v1/responses is one that vLLM would fail on."""
    content = item.get("content")
    if not isinstance(content, list):
        return False
    if not content:
        return "id" in item
    return isinstance(content[0], dict) and content[0].get("type") == "refusal"


def _stream_mode(given: str | None) -> StreamMode | None:
    if given is None:
        return None
    if given in tuple(StreamMode):
        return StreamMode(given)
    known = ", ".join(StreamMode)
    raise BadRequest(f"{STREAM_HEADER}: {given!r} is no mode; use one of {known}.", STREAM_HEADER)


def _moderation(body: Mapping[str, Any]) -> _Moderation | None:
    given = body.get("moderation")
    if given is None:
        return None
    try:
        return _Moderation.model_validate(given)
    except ValidationError as error:
        raise bad_field(error, "moderation") from error


def _user(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("metadata")
    candidates = (
        body.get("safety_identifier"),
        body.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    )
    return next((name for name in candidates if isinstance(name, str) and name), None)


def _messages(body: Mapping[str, Any]) -> Iterable[Message]:
    """The conversation of any of the APIs as role and text, oldest first.

    Empty for prompts in token ids and for several prompts at once: each flag then tells its own.
    """
    for role, key in (("system", "system"), ("system", "instructions")):
        if body.get(key):
            yield {"role": role, "content": text_of(body[key])}
    if isinstance(body.get("prompt"), str):
        yield {"role": "user", "content": body["prompt"]}
    turns = body.get("messages") or body.get("input") or ()
    if isinstance(turns, str):
        yield {"role": "user", "content": turns}
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            role, content = str(turn.get("role", "user")), turn.get("content", "")
            yield {"role": role, "content": text_of(content)}


def text_of(content: object) -> str:
    """The text in a content field: a string, or the text of its parts, one per line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "\n".join(part for part in parts if isinstance(part, str))
