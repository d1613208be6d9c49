"""Masks a request before anything else reads it: the model, the critic and the flags get
placeholders for what the policy masks in inputs. Owns which fields of each API are text that the
model reads. Does not find anything or own the placeholders (guard/masking.py).

Names of tools and of people, the descriptions of tools, images and the keys of arguments stay as
they are. What is spread over two texts is not found.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.criteria import Criterion, Place
from guard.masking import masked_text
from guard.policy import Policy
from guard.store.text import storable
from server.errors import BadRequest

Body = Mapping[str, Any]

_FIELDS = ("messages", "input", "prompt", "system", "instructions")
_TEXTS = frozenset(
    {
        *_FIELDS,
        *("content", "text", "thinking", "refusal", "reasoning", "reasoning_content"),
        *("output", "title"),
    }
)
_ARGUMENTS = ("arguments", "input")
"""Of tool calls: an object, or one as JSON."""


@dataclass(frozen=True)
class MaskedRequest:
    """A request's body, masked. names: the criteria that found something; without any, the body is
    as it was."""

    content: dict[str, Any]
    names: frozenset[str] = frozenset()


async def masked_request(body: dict[str, Any], policy: Policy) -> MaskedRequest:
    """Returns a request as the policy masks it. Raises BadRequest for prompts in token ids, which
    cannot be masked."""
    criteria = policy.masked_in(Place.INPUT)
    if not criteria:
        return MaskedRequest(body)
    if _has_token_ids(body.get("prompt")):
        raise BadRequest(
            f"prompt: the policy {policy.name!r} masks what it finds in requests, which it cannot "
            "do in token ids; send the prompt as text.",
            "prompt",
            "tokens_not_maskable",
        )
    # In a thread: in megabytes of text, looking for personal data takes seconds.
    return await asyncio.to_thread(_masked, body, criteria)


def _masked(body: Body, criteria: tuple[Criterion, ...]) -> MaskedRequest:
    masker = _Masker(criteria)
    masked = dict(body)
    try:
        for name in _FIELDS:
            if name in body:
                masked[name] = masker.part(body[name], name)
        if "documents" in body:
            masked["documents"] = masker.every_text(body["documents"])
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.", "body", "invalid_json") from error
    return MaskedRequest(masked, frozenset(masker.names))


def _has_token_ids(prompt: object) -> bool:
    prompts = prompt if isinstance(prompt, list) else ()
    return any(isinstance(one, int | list) for one in prompts)


@dataclass
class _Masker:
    """Masks texts. names: the criteria that found something so far."""

    criteria: tuple[Criterion, ...]
    names: set[str] = field(default_factory=set)

    def part(self, value: Any, name: str) -> Any:
        """Returns the value of a field with its texts masked."""
        if isinstance(value, str):
            return self._text(value) if name in _TEXTS else value
        if isinstance(value, list):
            return [self.part(one, name) for one in value]
        if isinstance(value, dict):
            return {key: self._field(value, key) for key in value}
        return value

    def every_text(self, value: Any) -> Any:
        """Returns the value with every text in it masked."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            return [self.every_text(one) for one in value]
        if isinstance(value, dict):
            return {key: self.every_text(one) for key, one in value.items()}
        return value

    def _field(self, fields: dict[str, Any], key: str) -> Any:
        value = fields[key]
        if key in _ARGUMENTS:
            return self._arguments(value)
        if key == "data" and fields.get("type") == "text":
            # The source of a document in Anthropic's API.
            return self.every_text(value)
        return self.part(value, key)

    def _arguments(self, value: Any) -> Any:
        """Returns a tool call's arguments; those in JSON stay JSON."""
        if not isinstance(value, str):
            return self.every_text(value)
        try:
            read = json.loads(value)
        except ValueError:
            return self._text(value)
        masked = self.every_text(read)
        return value if masked == read else storable(json.dumps(masked, ensure_ascii=False))

    def _text(self, text: str) -> str:
        masked, names = masked_text(text, self.criteria)
        self.names |= names
        return masked
