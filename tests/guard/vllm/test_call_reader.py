"""Tool calls are read with the parser that vLLM's handler makes, as the client gets them."""

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.parser import ParserManager

from guard.call import GuardCall, current_call
from guard.errors import CriticUnavailable
from guard.tool_calls import ToolCall
from guard.vllm.call_reader import read_calls_of

FUNCTION = {"name": "look_up", "parameters": {"type": "object", "properties": {"q": {}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALLED = '<tool_call>{"name": "look_up", "arguments": {"q": "ferns"}}</tool_call>'
LOOK_UP = ToolCall("look_up", '{"q": "ferns"}')


class Chat:
    """The part of vLLM's handlers that makes parsers."""

    enable_auto_tools = True

    def __init__(self, tokenizer: Any, tool_parser: str | None) -> None:
        self.tokenizer = tokenizer
        self.parser_cls: Any = ParserManager.get_parser(
            tool_parser_name=tool_parser, reasoning_parser_name=None, enable_auto_tools=True
        )

    def _make_parser(self, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        return self.parser_cls(tokenizer, request.tools) if self.parser_cls else None


class Responses(Chat):
    """The same under the name that the handler of responses has."""

    def _make_response_parser(self, request: Any, tokenizer: Any, kwargs: Any) -> Any:
        return super()._make_parser(request, tokenizer, kwargs)

    _make_parser = None  # type: ignore[assignment]


@pytest.fixture
def call() -> Iterator[GuardCall]:
    running = GuardCall("/v1/chat/completions")
    token = current_call.set(running)
    yield running
    current_call.reset(token)


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[], model="m", **{"tools": TOOLS, **fields})


def read(call: GuardCall, handler: Any, request: Any, *texts: str) -> tuple[ToolCall, ...]:
    read_calls_of(handler)
    read_calls_of(handler)
    make = handler._make_parser or handler._make_response_parser
    assert make(request, handler.tokenizer, {}) is not None
    assert call.call_reader is not None
    return call.call_reader.calls([1, 2], [(text, [3]) for text in texts])


def test_a_call_is_read_as_the_client_gets_it(call: GuardCall, tokenizer: Any) -> None:
    handler = Chat(tokenizer, "hermes")
    assert read(call, handler, chat(), CALLED) == (LOOK_UP,)
    # A parser is good for one answer, so each gets its own.
    assert read(call, handler, chat(), CALLED) == (LOOK_UP,)
    assert read(call, handler, chat(), "It rains.") == ()


def test_of_a_call_that_is_cut_off_streams_send_what_there_is(
    call: GuardCall, tokenizer: Any
) -> None:
    handler = Chat(tokenizer, "hermes")
    pieces = ('<tool_call>{"name": "look_up", ', '"arguments": {"q": "fe')
    assert read(call, handler, chat(), *pieces) == ()
    (cut_off,) = read(call, handler, chat(stream=True), *pieces)
    assert cut_off.name == "look_up"
    assert '{"q": "fe'.startswith(cut_off.arguments)
    assert read(call, handler, chat(stream=True), CALLED[:20], CALLED[20:]) == (LOOK_UP,)


def test_a_call_that_had_to_come_is_read(call: GuardCall, tokenizer: Any) -> None:
    handler = Chat(tokenizer, "hermes")
    named = {"type": "function", "function": {"name": "look_up"}}
    assert read(call, handler, chat(tool_choice="required"), CALLED) == (LOOK_UP,)
    assert read(call, handler, chat(tool_choice=named), CALLED) == (LOOK_UP,)
    # Other parsers leave such calls to JSON alone.
    handler = Chat(tokenizer, "pythonic")
    assert read(call, handler, chat(tool_choice=named), '{"q": "ferns"}') == (LOOK_UP,)


def test_a_call_in_a_response_is_read(call: GuardCall, tokenizer: Any) -> None:
    tools: Any = [{"type": "function", **FUNCTION}]
    request = ResponsesRequest(input="hi", tools=tools)
    assert read(call, Responses(tokenizer, "hermes"), request, CALLED) == (LOOK_UP,)


def test_where_no_call_is_possible_none_is_expected(call: GuardCall, tokenizer: Any) -> None:
    handler = Chat(tokenizer, "hermes")
    assert read(call, handler, chat(tool_choice="none"), CALLED) == ()
    assert call.call_reader is not None
    assert not call.call_reader.expects_calls


def test_a_server_without_a_parser_expects_none(call: GuardCall, tokenizer: Any) -> None:
    handler = Chat(tokenizer, None)
    read_calls_of(handler)
    assert handler._make_parser(chat(), tokenizer, {}) is None
    assert call.call_reader is not None
    assert not call.call_reader.expects_calls


def test_a_parser_that_fails_leaves_the_answer_unjudged(call: GuardCall, tokenizer: Any) -> None:
    handler = Chat(tokenizer, "hermes")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    handler.parser_cls = type("Failing", (handler.parser_cls,), {"parse": fail})
    with pytest.raises(CriticUnavailable):
        read(call, handler, chat(), CALLED)


def test_outside_a_call_nothing_is_left(tokenizer: Any) -> None:
    handler = Chat(tokenizer, "hermes")
    read_calls_of(handler)
    assert handler._make_parser(chat(), tokenizer, {}) is not None
