"""LiteLLM as a client: completion, plain and streamed, with tools and structured answers."""

import json
from typing import Any

import litellm
from outcome import Answer, Got, Request, main

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": Answer.model_json_schema() | {"additionalProperties": False},
    },
}


def _complete(request: Request, **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{request.model}",
        api_base=request.base_url,
        api_key="none",
        messages=[{"role": "user", "content": request.text}],
        temperature=0,
        max_tokens=request.max_tokens,
        max_retries=0,
        timeout=120,
        extra_body=request.extra,
        **more,
    )


def _note(answer: Any, got: Got) -> None:
    choice = answer.choices[0]
    message = choice.message
    got["text"] = message.content or ""
    got["finish"] = choice.finish_reason
    got["refusal"] = getattr(message, "refusal", None)
    got["tools"] = [
        {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for call in message.tool_calls or ()
    ]
    got["usage"] = answer.usage.completion_tokens


def _streamed(request: Request, got: Got, **more: Any) -> None:
    chunks = []
    for chunk in _complete(request, stream=True, stream_options={"include_usage": True}, **more):
        chunks.append(chunk)
        for choice in chunk.choices:
            got["text"] += choice.delta.content or ""
    _note(litellm.stream_chunk_builder(chunks), got)


def _parse(got: Got) -> None:
    """LiteLLM leaves this to its user."""
    if got["text"]:
        got["parsed"] = Answer.model_validate_json(got["text"]).model_dump()


def plain(request: Request, got: Got) -> None:
    """completion()"""
    _note(_complete(request), got)


def stream(request: Request, got: Got) -> None:
    """completion(stream=True)"""
    _streamed(request, got)


def tool(request: Request, got: Got) -> None:
    """completion() that must call a tool"""
    _note(_complete(request, tools=[TOOL], tool_choice="required"), got)


def tool_stream(request: Request, got: Got) -> None:
    """completion(stream=True) that must call a tool"""
    _streamed(request, got, tools=[TOOL], tool_choice="required")


def structured(request: Request, got: Got) -> None:
    """completion(response_format=...)"""
    _note(_complete(request, response_format=Answer), got)
    _parse(got)


def structured_stream(request: Request, got: Got) -> None:
    """completion(response_format=..., stream=True)"""
    _streamed(request, got, response_format=Answer)
    _parse(got)


if __name__ == "__main__":
    main({"plain": plain, "stream": stream, "tool": tool, "tool_stream": tool_stream,
          "structured": structured, "structured_stream": structured_stream})  # fmt: skip
