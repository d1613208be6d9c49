"""LlamaIndex's OpenAILike: chat, stream_chat, tools and structured answers."""

from typing import Any

from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from outcome import Answer, Got, Request, main


def look_up(plant: str) -> str:
    """Looks a plant up."""
    return plant


def _model(request: Request, **more: Any) -> OpenAILike:
    return OpenAILike(
        api_base=request.base_url,
        api_key="none",
        model=request.model,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=request.max_tokens,
        max_retries=0,
        timeout=120,
        additional_kwargs={"extra_body": request.extra},
        **more,
    )


def _messages(request: Request) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=request.text)]


def _note(model: OpenAILike, answer: ChatResponse, got: Got) -> None:
    got["text"] = answer.message.content or ""
    calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    got["tools"] = [{"name": c.tool_name, "arguments": c.tool_kwargs} for c in calls]
    choices = getattr(answer.raw, "choices", None)
    got["finish"] = (choices and choices[0].finish_reason) or got["finish"]


def plain(request: Request, got: Got) -> None:
    """chat()"""
    model = _model(request)
    _note(model, model.chat(_messages(request)), got)


def stream(request: Request, got: Got) -> None:
    """stream_chat()"""
    model = _model(request)
    for part in model.stream_chat(_messages(request)):
        _note(model, part, got)


def _tools() -> dict[str, Any]:
    tools = [FunctionTool.from_defaults(look_up, fn_schema=Answer)]
    return {"tools": tools, "tool_required": True}


def tool(request: Request, got: Got) -> None:
    """chat_with_tools()"""
    model = _model(request, strict=True)
    _note(model, model.chat_with_tools(user_msg=request.text, **_tools()), got)


def tool_stream(request: Request, got: Got) -> None:
    """stream_chat_with_tools()"""
    model = _model(request, strict=True)
    for part in model.stream_chat_with_tools(user_msg=request.text, **_tools()):
        _note(model, part, got)


def _structured_model(request: Request) -> Any:
    model = _model(request, should_use_structured_outputs=True)
    return model.as_structured_llm(Answer)


def structured(request: Request, got: Got) -> None:
    """as_structured_llm(), chat()"""
    answer = _structured_model(request).chat(_messages(request))
    got["text"] = answer.message.content or ""
    got["parsed"] = answer.raw and answer.raw.model_dump()


def structured_stream(request: Request, got: Got) -> None:
    """as_structured_llm(), stream_chat()"""
    for part in _structured_model(request).stream_chat(_messages(request)):
        got["text"] = part.message.content or ""
        got["parsed"] = part.raw and part.raw.model_dump()


if __name__ == "__main__":
    main({"plain": plain, "stream": stream, "tool": tool, "tool_stream": tool_stream,
          "structured": structured, "structured_stream": structured_stream})  # fmt: skip
