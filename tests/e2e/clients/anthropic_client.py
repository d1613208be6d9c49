"""Anthropic's client: messages, streams, tools and the count of tokens."""

from typing import Any

from anthropic import Anthropic
from anthropic.types import Message
from outcome import Answer, Got, Request, main

TOOL: Any = {
    "name": "look_up",
    "description": "Looks a plant up.",
    "strict": True,
    "input_schema": Answer.model_json_schema() | {"additionalProperties": False},
}


def _client(request: Request) -> Anthropic:
    # This client adds /v1 itself.
    base_url = request.base_url.removesuffix("/v1")
    return Anthropic(base_url=base_url, api_key="none", max_retries=0, timeout=120)


def _fields(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": request.text}],
        # This client has no argument for it any more.
        "extra_body": {"temperature": 0, **request.extra},
    }


def _tools() -> dict[str, Any]:
    return {"tools": [TOOL], "tool_choice": {"type": "any"}}


def _note(message: Message, got: Got) -> None:
    got["text"] = "".join(block.text for block in message.content if block.type == "text")
    got["finish"] = message.stop_reason
    got["tools"] = [
        {"name": block.name, "arguments": block.input}
        for block in message.content
        if block.type == "tool_use"
    ]
    got["usage"] = message.usage.output_tokens


def plain(request: Request, got: Got) -> None:
    """messages.create()"""
    _note(_client(request).messages.create(**_fields(request)), got)


def stream(request: Request, got: Got, **more: Any) -> None:
    """messages.stream()"""
    with _client(request).messages.stream(**_fields(request), **more) as events:
        for text in events.text_stream:
            got["text"] += text
        _note(events.get_final_message(), got)


def tool(request: Request, got: Got) -> None:
    """messages.create() that must call a tool"""
    _note(_client(request).messages.create(**_fields(request), **_tools()), got)


def tool_stream(request: Request, got: Got) -> None:
    """messages.stream() that must call a tool"""
    stream(request, got, **_tools())


def structured(request: Request, got: Got) -> None:
    """messages.parse()"""
    message = _client(request).messages.parse(**_fields(request), output_format=Answer)
    _note(message, got)
    got["parsed"] = message.parsed_output and message.parsed_output.model_dump()


def structured_stream(request: Request, got: Got) -> None:
    """messages.stream(output_format=...)"""
    stream(request, got, output_format=Answer)


def count(request: Request, got: Got) -> None:
    """messages.count_tokens()"""
    fields = {name: _fields(request)[name] for name in ("model", "messages")}
    got["usage"] = _client(request).messages.count_tokens(**fields).input_tokens


if __name__ == "__main__":
    main({"plain": plain, "stream": stream, "tool": tool, "tool_stream": tool_stream,
          "structured": structured, "structured_stream": structured_stream,
          "count": count})  # fmt: skip
