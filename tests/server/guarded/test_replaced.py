"""What is sent instead of a withheld answer stands where each API has a place for it, checked with
the types of the clients."""

from typing import Any

import pytest
from anthropic.types import Message
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from guard.call import GuardCall, Replacement
from server.guarded.replaced import chat_body, chat_chunk, message_body, response_body

REFUSAL = Replacement("I can't help with that.", (1,))
REVISION = Replacement("Ask me of flowers.", (1,), finish_reason="stop")
FUNCTION = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "look_up",
    "arguments": "",
    "status": "in_progress",
}
CALLED = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": REFUSAL.text},
}


def call(*replacements: Replacement, wants_json: bool = False) -> GuardCall:
    return GuardCall("", wants_json=wants_json, replaced=dict(enumerate(replacements)))


def completion(**message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "tool_calls",
        "logprobs": None,
        "message": {"role": "assistant", "content": None, "refusal": None, **message},
    }
    same = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**same, "choices": [choice]}


def chunk(finish: str | None, index: int = 0, **delta: Any) -> dict[str, Any]:
    same = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**same, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize("replacement", [REFUSAL, REVISION])
def test_a_refusal_among_a_tool_s_arguments_becomes_content(replacement: Replacement) -> None:
    body = chat_body(call(replacement), completion(tool_calls=[CALLED]))
    (choice,) = ChatCompletion.model_validate(body).choices
    assert choice.message.content == replacement.text
    assert not choice.message.tool_calls
    assert choice.finish_reason == replacement.finish_reason


def test_where_json_was_asked_for_it_is_a_refusal() -> None:
    body = chat_body(call(REFUSAL, wants_json=True), completion(content=REFUSAL.text))
    (choice,) = ChatCompletion.model_validate(body).choices
    assert (choice.message.content, choice.message.refusal) == (None, REFUSAL.text)


def test_other_choices_stay_as_they_are() -> None:
    body = completion(tool_calls=[CALLED])
    other = {**body["choices"][0], "index": 1}
    changed = chat_body(call(REFUSAL), {**body, "choices": [*body["choices"], other]})
    assert changed["choices"][1] == other


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "function": {"arguments": REFUSAL.text}}]},
        {"content": ""},
        {},
    ],
    ids=["arguments", "lost", "nothing"],
)
def test_in_a_stream_the_last_chunk_has_it_as_content(delta: dict[str, Any]) -> None:
    changed = chat_chunk(call(REFUSAL), chunk("tool_calls", **delta))
    (choice,) = ChatCompletionChunk.model_validate(changed).choices
    assert (choice.delta.content, choice.delta.tool_calls) == (REFUSAL.text, None)
    assert choice.finish_reason == "content_filter"


def test_a_stream_s_other_chunks_stay_as_they_are() -> None:
    replaced = call(REFUSAL)
    for other in (
        # Arguments that went out before the flag.
        chunk(None, tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        chunk("stop", index=1, content="Water it."),
        chunk("content_filter", content=f"\n\n{REFUSAL.text}"),
        {"id": "1", "choices": []},
    ):
        assert chat_chunk(replaced, other) is None


def test_a_stream_of_json_ends_with_a_refusal() -> None:
    replaced = call(REFUSAL, wants_json=True)
    changed = chat_chunk(replaced, chunk("content_filter", content=f"\n\n{REFUSAL.text}"))
    (choice,) = ChatCompletionChunk.model_validate(changed).choices
    assert (choice.delta.content, choice.delta.refusal) == (None, REFUSAL.text)


@pytest.mark.parametrize("wants_json", [False, True])
def test_a_response_has_a_message_instead_of_a_tool_call(wants_json: bool) -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [reasoning, FUNCTION | {"arguments": REFUSAL.text}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    body = response_body(call(REFUSAL, wants_json=wants_json), response)
    parsed = Response.model_validate(body)
    assert [item.type for item in parsed.output] == ["reasoning", "message"]
    assert parsed.output_text == ("" if wants_json else REFUSAL.text)
    (content,) = body["output"][1]["content"]
    assert content["type"] == ("refusal" if wants_json else "output_text")


def test_a_message_has_a_text_instead_of_a_tool_use() -> None:
    used = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [used],
        "stop_reason": "refusal",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    (block,) = Message.model_validate(message_body(call(REFUSAL), body)).content
    assert block.type == "text"
    assert block.text == REFUSAL.text


def test_without_a_replacement_nothing_changes() -> None:
    assert response_body(call(), {"output": [1]}) == {"output": [1]}
    assert message_body(call(), {"content": [1]}) == {"content": [1]}
    body = completion(tool_calls=[CALLED])
    assert chat_body(call(), body) == body
