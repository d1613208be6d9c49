"""pydantic-ai's chat model: run, run_stream, tools and output types."""

import asyncio
from typing import Any

from openai import AsyncOpenAI
from outcome import Answer, Got, Request, main
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider


def _agent(request: Request, **more: Any) -> Agent[None, Any]:
    client = AsyncOpenAI(base_url=request.base_url, api_key="none", max_retries=0, timeout=120)
    model = OpenAIChatModel(request.model, provider=OpenAIProvider(openai_client=client))
    settings = OpenAIChatModelSettings(
        temperature=0, max_tokens=request.max_tokens, extra_body=request.extra
    )
    return Agent(model, model_settings=settings, **more)


def _note(response: Any, got: Got) -> None:
    got["text"] = response.text or ""
    got["finish"] = response.finish_reason
    got["tools"] = [
        {"name": call.tool_name, "arguments": call.args_as_dict()} for call in response.tool_calls
    ]
    got["usage"] = response.usage.output_tokens
    got["refusal"] = (response.provider_details or {}).get("refusal")


def _run(request: Request, got: Got, **more: Any) -> None:
    async def run() -> None:
        result = await _agent(request, **more).run(request.text)
        _note(result.response, got)
        if isinstance(result.output, Answer):
            got["parsed"] = result.output.model_dump()

    asyncio.run(run())


def _stream(request: Request, got: Got, **more: Any) -> None:
    async def run() -> None:
        async with _agent(request, **more).run_stream(request.text) as result:
            async for part in result.stream_output(debounce_by=None):
                if isinstance(part, Answer):
                    got["parsed"] = part.model_dump()
                else:
                    got["text"] = part
            _note(result.response, got)

    asyncio.run(run())


def plain(request: Request, got: Got) -> None:
    """run()"""
    _run(request, got)


def stream(request: Request, got: Got) -> None:
    """run_stream()"""
    _stream(request, got)


def tool(request: Request, got: Got) -> None:
    """run(), with an output type that is a tool"""
    _run(request, got, output_type=Answer)


def tool_stream(request: Request, got: Got) -> None:
    """run_stream(), with an output type that is a tool"""
    _stream(request, got, output_type=Answer)


def tool_or_text(request: Request, got: Got) -> None:
    """run(), with a text beside the output type that is a tool"""
    _run(request, got, output_type=[Answer, str])


def structured(request: Request, got: Got) -> None:
    """run(), with a native output type"""
    _run(request, got, output_type=NativeOutput(Answer))


def structured_stream(request: Request, got: Got) -> None:
    """run_stream(), with a native output type"""
    _stream(request, got, output_type=NativeOutput(Answer))


if __name__ == "__main__":
    main({"plain": plain, "stream": stream, "tool": tool, "tool_stream": tool_stream,
          "tool_or_text": tool_or_text, "structured": structured,
          "structured_stream": structured_stream})  # fmt: skip
