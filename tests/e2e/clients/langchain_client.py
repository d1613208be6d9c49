"""LangChain's ChatOpenAI: invoke, stream, with_structured_output and bind_tools."""

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool as as_tool
from langchain_openai import ChatOpenAI
from outcome import Answer, Got, Request, main


@as_tool(args_schema=Answer)
def look_up(plant: str) -> str:
    """Looks a plant up."""
    return plant


def _model(request: Request, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=request.base_url,
        api_key="none",
        model=request.model,
        temperature=0,
        max_tokens=request.max_tokens,
        max_retries=0,
        timeout=120,
        extra_body=request.extra,
        **more,
    )


def _note(message: AIMessage, got: Got) -> None:
    got["text"] = str(message.text)
    got["finish"] = message.response_metadata.get("finish_reason")
    got["refusal"] = message.additional_kwargs.get("refusal")
    got["tools"] = [{"name": c["name"], "arguments": c["args"]} for c in message.tool_calls]
    got["usage"] = message.usage_metadata and message.usage_metadata["output_tokens"]
    got["invalid"] = len(message.invalid_tool_calls)


def _streamed(model: Any, request: Request, got: Got) -> None:
    whole: AIMessageChunk | None = None
    for chunk in model.stream(request.text):
        whole = chunk if whole is None else whole + chunk
        _note(whole, got)


def plain(request: Request, got: Got) -> None:
    """invoke()"""
    _note(_model(request).invoke(request.text), got)


def stream(request: Request, got: Got) -> None:
    """stream()"""
    _streamed(_model(request, stream_usage=True), request, got)


def _with_tool(request: Request) -> Any:
    return _model(request).bind_tools([look_up], tool_choice="any", strict=True)


def tool(request: Request, got: Got) -> None:
    """bind_tools(), invoke()"""
    _note(_with_tool(request).invoke(request.text), got)


def tool_stream(request: Request, got: Got) -> None:
    """bind_tools(), stream()"""
    _streamed(_with_tool(request), request, got)


def structured(request: Request, got: Got) -> None:
    """with_structured_output()"""
    model = _model(request).with_structured_output(Answer)
    got["parsed"] = model.invoke(request.text).model_dump()


def structured_raw(request: Request, got: Got) -> None:
    """with_structured_output() that keeps the message beside what was read from it"""
    model = _model(request).with_structured_output(
        Answer, method="function_calling", strict=True, include_raw=True
    )
    result = model.invoke(request.text)
    _note(result["raw"], got)
    got["parsed"] = result["parsed"] and result["parsed"].model_dump()


def structured_stream(request: Request, got: Got) -> None:
    """with_structured_output(), stream()"""
    for part in _model(request).with_structured_output(Answer).stream(request.text):
        got["parsed"] = part.model_dump()


if __name__ == "__main__":
    main({"plain": plain, "stream": stream, "tool": tool, "tool_stream": tool_stream,
          "structured": structured, "structured_raw": structured_raw,
          "structured_stream": structured_stream})  # fmt: skip
