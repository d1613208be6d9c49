"""The practice model calls a tool, by each API, whole and streamed. Owns the requests, and what of
an answer counts: the names of the tools that it calls, and its text.
"""

import json
from collections.abc import Mapping
from typing import Any

import anthropic
import openai

from refine.practice.integrity import MODEL_NAME
from tests.e2e.plants import FUNCTION, compact_json

Said = tuple[list[str], str]
"""The tools that an answer calls, and its text."""

ASKED = [{"role": "user", "content": "How do I water a rose?"}]
_ARGUMENTS = json.dumps({"plant": "rose"})


def by_chat(client: openai.OpenAI, stream: bool, content: str | None = None) -> Said:
    """Calls by a chat completion. content: what a tool has answered before."""
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": _ARGUMENTS}}
    results: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": content},
    ]
    fields: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [*ASKED, *(results if content else ())],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "required",
        "max_tokens": 100,
        "temperature": 0,
        "extra_body": compact_json(),
    }
    if not stream:
        message = client.chat.completions.create(**fields).choices[0].message
        calls = [call.function.name for call in message.tool_calls or ()]
        return calls, message.content or ""
    calls, text = [], ""
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for called in choice.delta.tool_calls or ():
                calls += [called.function.name] if called.function.name else []
    return calls, text


def by_response(client: openai.OpenAI, stream: bool, content: str | None = None) -> Said:
    """Calls by a response."""
    results = [
        {"type": "function_call", "call_id": "1", "name": "look_up", "arguments": _ARGUMENTS},
        {"type": "function_call_output", "call_id": "1", "output": content},
    ]
    fields: dict[str, Any] = {
        "model": MODEL_NAME,
        "input": [*ASKED, *(results if content else ())],
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": "required",
        "max_output_tokens": 100,
        "temperature": 0,
        "extra_body": compact_json(),
    }
    if stream:
        events: list[Any] = list(client.responses.create(**fields, stream=True))
        response = events[-1].response
        text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    else:
        response = client.responses.create(**fields)
        text = response.output_text
    calls = [item.name for item in response.output if item.type == "function_call"]
    return calls, text


def by_message(client: anthropic.Anthropic, stream: bool, content: str | None = None) -> Said:
    """Calls by Anthropic's API."""
    call = {"type": "tool_use", "id": "1", "name": "look_up", "input": {"plant": "rose"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": content}
    results = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    fields: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [*ASKED, *(results if content else ())],
        "tools": [{"name": "look_up", "strict": True, "input_schema": FUNCTION["parameters"]}],
        "tool_choice": {"type": "any"},
        "max_tokens": 30,
        "extra_body": {"temperature": 0, **compact_json()},
    }
    if stream:
        with client.messages.stream(**fields) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**fields)
    calls = [block.name for block in message.content if block.type == "tool_use"]
    return calls, "".join(block.text for block in message.content if block.type == "text")


WAYS: Mapping[str, Any] = {"chat": by_chat, "response": by_response, "message": by_message}
