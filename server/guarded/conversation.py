"""Reads the conversation out of a request to any API: messages of chat completions and of
Anthropic's API, items of the Responses API, plain prompts. Owns what counts as text that the model
reads: tool calls, their results and reasoning are included, so that all of it is judged, stored and
shown. Leaves validation to vLLM.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.call import Message

_Fields = Mapping[str, Any]
_ANSWER_TYPES = ("", "message")
_TOOL_ROLES = ("tool", "function")
_RESULT_PARTS = ("tool_result", "document")


@dataclass(frozen=True)
class Conversation:
    """messages: role and text, oldest first. open_turn: all text since the last answer, which is
    what the next answer answers; empty if there are no messages. tool_results: what tools and
    documents say in it."""

    messages: tuple[Message, ...]
    open_turn: str
    tool_results: str = ""


@dataclass(frozen=True)
class _Turn:
    """tool_results: the part of the text that is from tools. is_answer: whether the assistant ended
    its turn here, instead of calling a tool."""

    role: str
    text: str
    tool_results: str = ""
    is_answer: bool = False


def conversation(body: _Fields) -> Conversation:
    """Returns a request's conversation. It is empty for prompts in token ids and for several
    prompts at once: each flag then has its own prompt."""
    turns = tuple(_turns(body))
    documents = tuple(map(_document_text, _dicts(body.get("documents"))))
    system = (*_system(body), *(_Turn("system", text) for text in documents))
    # A last turn of the assistant's is a beginning that the model goes on with.
    answers = [place for place, turn in enumerate(turns[:-1]) if turn.is_answer]
    open_turns = turns[answers[-1] + 1 :] if answers else turns
    texts = [*documents, *(turn.text for turn in open_turns if turn.role != "system")]
    results = [*documents, *(turn.tool_results for turn in open_turns)]
    return Conversation(
        tuple(Message(role=turn.role, content=turn.text) for turn in (*system, *turns)),
        "\n\n".join(filter(None, texts)),
        "\n\n".join(filter(None, results)),
    )


def text_of(content: object) -> str:
    """Returns the text of a content field: a string, or its parts, one per line."""
    if isinstance(content, str):
        return content
    parts = map(_part_text, content) if isinstance(content, list) else ()
    return "\n".join(part for part in parts if part)


def _system(body: _Fields) -> Iterator[_Turn]:
    for key in ("system", "instructions"):
        if body.get(key):
            yield _Turn("system", text_of(body[key]))


def _document_text(document: _Fields) -> str:
    """Returns the texts of a document that the chat template shows to the model."""
    return "\n".join(value for value in document.values() if isinstance(value, str))


def _turns(body: _Fields) -> Iterator[_Turn]:
    items = body.get("messages") or body.get("input")
    for content in (body.get("prompt"), items):
        if isinstance(content, str):
            yield _Turn("user", content)
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            yield _turn(item)


def _turn(item: _Fields) -> _Turn:
    kind = str(item.get("type") or "")
    if kind not in _ANSWER_TYPES:
        return _responses_item(kind, item)
    role = str(item.get("role", "user"))
    calls = [call_text(call.get("function")) for call in _dicts(item.get("tool_calls"))]
    texts = [text_of(item.get(name)) for name in ("reasoning", "content")]
    uses_tool = bool(calls) or any(
        part.get("type") == "tool_use" for part in _dicts(item.get("content"))
    )
    text = "\n".join(filter(None, [*texts, *calls]))
    is_answer = role == "assistant" and not uses_tool
    return _Turn(role, text, text if role in _TOOL_ROLES else _tool_results(item), is_answer)


def _tool_results(item: _Fields) -> str:
    """Returns the results of tools in a message of Anthropic's API, where the user sends them."""
    parts = _dicts(item.get("content"))
    return "\n".join(_part_text(part) for part in parts if part.get("type") in _RESULT_PARTS)


def _responses_item(kind: str, item: _Fields) -> _Turn:
    """Returns an item of the Responses API that is no message."""
    output = text_of(item.get("output"))
    if kind.endswith("_output"):
        return _Turn("tool", output, output)
    if kind == "reasoning":
        texts = [text_of(item.get(name)) for name in ("summary", "content")]
    else:
        texts = [call_text(item), output]
    return _Turn("assistant", "\n".join(filter(None, texts)), output)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    kind = part.get("type")
    if kind == "tool_use":
        return call_text({"name": part.get("name"), "arguments": part.get("input")})
    if kind == "tool_result":
        return text_of(part.get("content"))
    if kind == "document":
        source = part.get("source")
        is_text = isinstance(source, dict) and source.get("type") == "text"
        texts = [part.get("title"), source.get("data") if is_text and source else None]
        return "\n".join(text for text in texts if isinstance(text, str))
    texts = [part.get("text"), part.get("thinking"), part.get("refusal")]
    return "\n".join(text for text in texts if isinstance(text, str))


def call_text(call: object) -> str:
    """Returns a tool call as text: its name and arguments. Empty if it is no call."""
    if not isinstance(call, dict):
        return ""
    arguments = arguments_text(call.get("arguments", call.get("input", "")))
    name = call.get("name")
    return f"{name}({arguments})" if isinstance(name, str) else arguments


def arguments_text(arguments: object) -> str:
    """Returns a tool call's arguments as JSON, which most APIs send as a text already."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _dicts(value: object) -> Sequence[_Fields]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
