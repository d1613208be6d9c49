"""Event streams in which vLLM parsed a replacement into a tool call, as the clients' own stream
accumulators read them."""

from collections.abc import Iterable
from typing import Any

import pytest
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from guard.call import GuardCall
from server.guarded.replaced_streams import MessageEvents, ResponseEvents
from tests.server.guarded.test_replaced import FUNCTION, REFUSAL

TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}


class Word(BaseModel):
    """The JSON object that the request asks for."""

    word: str


def started(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def input_delta(index: int, text: str) -> dict[str, Any]:
    delta = {"type": "input_json_delta", "partial_json": text}
    return {"type": "content_block_delta", "index": index, "delta": delta}


def stopped(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


END = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}}
TEXT_BLOCK: list[dict[str, Any]] = [
    {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": REFUSAL.text}},
    {"type": "content_block_stop"},
]


def messages(before: Iterable[Any], after: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns what is sent: before the replacement is passed on, and after."""
    call = GuardCall("/v1/messages", replaced={0: REFUSAL})
    events = MessageEvents(call)
    sent = [out for event in before for out in events.of(event)]
    call.replacing = True
    return sent + [out for event in after for out in events.of(event)]


def test_tool_input_stops_and_the_refusal_is_a_text_of_its_own() -> None:
    before = [started(0, TOOL), input_delta(0, '{"word": "a')]
    sent = messages(before, [input_delta(0, REFUSAL.text), stopped(0), END])
    assert sent == [*before, stopped(0), *({**one, "index": 1} for one in TEXT_BLOCK), END]


def test_a_tool_use_made_of_the_refusal_is_dropped() -> None:
    sent = messages([], [started(0, TOOL), input_delta(0, REFUSAL.text), stopped(0), END])
    assert sent == [*({**one, "index": 0} for one in TEXT_BLOCK), END]


def test_a_refusal_that_is_text_already_stays() -> None:
    block = [{**one, "index": 0} for one in TEXT_BLOCK]
    assert messages(block[:1], [*block[1:], END]) == [*block, END]


def added(index: int, item: dict[str, Any], number: int) -> dict[str, Any]:
    kind = "response.output_item.added"
    return {"type": kind, "output_index": index, "item": item, "sequence_number": number}


def arguments(text: str, number: int, *, done: bool = False) -> dict[str, Any]:
    same = {"item_id": "fc_1", "output_index": 0, "sequence_number": number}
    if done:
        kind = "response.function_call_arguments.done"
        return {"type": kind, "arguments": text, "name": "look_up", **same}
    return {"type": "response.function_call_arguments.delta", "delta": text, **same}


def item_done(text: str, number: int) -> dict[str, Any]:
    item = {**FUNCTION, "arguments": text, "status": "completed"}
    kind = "response.output_item.done"
    return {"type": kind, "output_index": 0, "item": item, "sequence_number": number}


def completed(number: int) -> dict[str, Any]:
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    return {"type": "response.completed", "response": response, "sequence_number": number}


def responses(
    before: Iterable[Any], after: Iterable[Any], *, wants_json: bool = False
) -> list[dict[str, Any]]:
    call = GuardCall("/v1/responses", replaced={0: REFUSAL}, wants_json=wants_json)
    events = ResponseEvents(call)
    sent = [out for event in before for out in events.of(event)]
    call.replacing = True
    sent += [out for event in after for out in events.of(event)]
    for event in sent:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(event)
    return sent


def test_arguments_stop_and_the_refusal_is_a_message() -> None:
    before = [added(0, FUNCTION, 0), arguments('{"word": "a', 1)]
    rest = [
        arguments(REFUSAL.text, 2),
        arguments('{"word": "a' + REFUSAL.text, 3, done=True),
        item_done('{"word": "a' + REFUSAL.text, 4),
        completed(5),
    ]
    sent = responses(before, rest)
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert [event["type"] for event in sent] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert sent[2]["arguments"] == sent[3]["item"]["arguments"] == '{"word": "a'
    assert sent[4]["output_index"] == 1
    assert sent[6]["delta"] == REFUSAL.text


def test_a_call_made_of_the_refusal_is_dropped() -> None:
    rest = [added(0, FUNCTION, 0), arguments(REFUSAL.text, 1), item_done(REFUSAL.text, 2)]
    sent = responses([], [*rest, completed(3)])
    assert [event["sequence_number"] for event in sent] == list(range(7))
    assert sent[0]["item"]["type"] == "message"
    assert not [event for event in sent if "function_call" in str(event)]


@pytest.mark.parametrize("wants_json", [False, True])
def test_the_message_is_a_refusal_where_json_was_asked_for(wants_json: bool) -> None:
    sent = responses([], [completed(0)], wants_json=wants_json)
    kinds = {event["type"] for event in sent}
    assert ("response.refusal.delta" in kinds) is wants_json
    assert ("response.output_text.delta" in kinds) is not wants_json


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant"}


def text_events(first: int, *texts: str) -> list[dict[str, Any]]:
    """Returns the events of a message of text as vLLM sends them."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    whole = "".join(texts)
    ended = {**MESSAGE, "status": "completed", "content": [{**part, "text": whole}]}
    events: list[dict[str, Any]] = [
        added(0, {**MESSAGE, "status": "in_progress", "content": []}, 0),
        {"type": "response.content_part.added", "part": part, **place},
        *({"type": "response.output_text.delta", "delta": text, **place} for text in texts),
        {"type": "response.output_text.done", "text": whole, **place},
        {"type": "response.content_part.done", "part": {**part, "text": whole}, **place},
        {"type": "response.output_item.done", "output_index": 0, "item": ended},
    ]
    return [{**event, "sequence_number": first + n} for n, event in enumerate(events)]


@pytest.mark.parametrize("shown", [[], ['{"word": "a']])
def test_where_json_was_asked_for_no_text_is_read_as_json(shown: list[str]) -> None:
    whole = text_events(0, *shown, "\n\n" * len(shown) + REFUSAL.text)
    already_sent = 2 + len(shown) if shown else 0
    sent = responses(
        whole[:already_sent], [*whole[already_sent:], completed(len(whole))], wants_json=True
    )
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    texts = [event["delta"] for event in sent if event["type"] == "response.output_text.delta"]
    refusals = [event["delta"] for event in sent if event["type"] == "response.refusal.delta"]
    assert (texts, refusals) == (shown, [REFUSAL.text])
    assert "response.output_text.done" not in {event["type"] for event in sent}
    ends = [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    assert [part["text"] for end in ends[:-1] for part in end["content"]] == shown
    reader = ResponseStreamState[Word](text_format=Word, input_tools=[])
    created = {**completed(0), "type": "response.created"}
    for event in [created, *sent]:
        reader.handle_event(TypeAdapter[Any](ResponseStreamEvent).validate_python(event))


def test_without_a_replacement_the_same_events_are_passed_on() -> None:
    call = GuardCall("/v1/responses")
    events = ResponseEvents(call)
    whole = [added(0, FUNCTION, 0), arguments("{}", 1), item_done("{}", 2), completed(3)]
    assert [out for event in whole for out in events.of(event)] == whole
