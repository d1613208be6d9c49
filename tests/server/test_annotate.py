"""The moderation field and "withheld" in each API's words, checked with the openai package."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion import Moderation as CompletionModeration
from openai.types.responses.response import Moderation as ResponseModeration

from guard.call import GuardCall, Ruling
from guard.errors import CriticUnavailable
from guard.policy import Action, Decision
from guard.verdict import CATEGORIES, Verdict
from server.annotate import (
    StreamAnnotator,
    annotate_body,
    completion_moderation,
    response_moderation,
)

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def ruling(harm: float, action: Action = Action.PASS, scores: bool = True) -> Ruling:
    """A verdict all of whose harm is violence."""
    shares = {name: harm if name == "violence" else 0.0 for name in CATEGORIES}
    flagged = () if action is Action.PASS else ("violence",)
    return Ruling(
        Verdict(harm, shares if scores else None), Decision(action, flagged, "scripted"), 7
    )


def call(route: str, *outputs: Ruling, **fields: Any) -> GuardCall:
    rulings = {("req", index): output for index, output in enumerate(outputs)}
    return GuardCall(route=route, output_rulings=rulings, **fields)


BLOCKED = ruling(0.9, Action.BLOCK)
FAILED = Ruling(None, Decision(Action.PASS, (), "failing open"), 0)


def test_a_completions_moderation_is_as_openai_types_it() -> None:
    asked = call(CHAT, ruling(0.2), BLOCKED, wants_moderation=True, input_ruling=ruling(0.1))
    parsed = CompletionModeration.model_validate(completion_moderation(asked, "m"))
    assert parsed.input.type == "moderation_results"
    assert parsed.output.type == "moderation_results"
    assert [result.flagged for result in parsed.output.results] == [False, True]
    flagged = parsed.output.results[1]
    assert tuple(flagged.categories) == CATEGORIES
    assert [name for name, hit in flagged.categories.items() if hit] == ["violence"]
    assert flagged.category_scores["violence"] == 0.9
    assert set(map(tuple, flagged.category_applied_input_types.values())) == {("text",)}


def test_a_responses_moderation_is_the_worst_result() -> None:
    asked = call(RESPONSES, ruling(0.2), BLOCKED, wants_moderation=True, input_ruling=ruling(0.1))
    parsed = ResponseModeration.model_validate(response_moderation(asked, "m"))
    assert parsed.output.type == "moderation_result"
    assert parsed.output.flagged
    assert parsed.input.type == "moderation_result"
    assert not parsed.input.flagged


@pytest.mark.parametrize(
    ("render", "model"),
    [(completion_moderation, CompletionModeration), (response_moderation, ResponseModeration)],
)
def test_what_was_not_judged_or_failed_says_so(render: Any, model: Any) -> None:
    parsed = model.model_validate(render(call(CHAT, FAILED), "m"))
    assert (parsed.input.type, parsed.input.code) == ("error", "not_run")
    assert (parsed.output.type, parsed.output.code) == ("error", "critic_unavailable")


def test_each_choice_has_its_own_state_in_its_own_place() -> None:
    revised = replace(BLOCKED, decision=Decision(Action.REVISE, ("violence",), "scripted"))
    rulings = (ruling(0.1, scores=False), FAILED, revised, BLOCKED)
    field = completion_moderation(call(CHAT, *rulings), "m")
    unread, failed, third, fourth = field["output"]["results"]
    assert (unread["action"], unread["flagged"], unread["category_scores"]) == ("pass", False, {})
    assert (failed["type"], failed["code"]) == ("error", "critic_unavailable")
    assert (third["action"], fourth["action"]) == ("revise", "block")
    assert [each["checked_characters"] for each in (unread, third, fourth)] == [7, 7, 7]
    parsed = CompletionModeration.model_validate(
        completion_moderation(call(CHAT, ruling(0.1, scores=False), BLOCKED), "m")
    )
    assert parsed.output.type == "moderation_results"


def test_a_response_whose_critique_failed_in_part_says_so() -> None:
    field = response_moderation(call(RESPONSES, BLOCKED, FAILED), "m")
    assert field["output"]["code"] == "critic_unavailable"


def test_a_blocked_response_is_incomplete_by_content_filter() -> None:
    body = annotate_body(call(RESPONSES, BLOCKED), {"model": "m", "status": "completed"})
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "content_filter"}
    assert body["moderation"]["output"]["flagged"]


def test_a_blocked_message_is_a_refusal() -> None:
    body = {"model": "m", "stop_reason": None}
    assert annotate_body(call(MESSAGES, BLOCKED), body)["stop_reason"] == "refusal"
    annotated = call(MESSAGES, ruling(0.9, Action.ANNOTATE))
    assert annotate_body(annotated, body | {"stop_reason": "end_turn"}) == {
        "model": "m",
        "stop_reason": "end_turn",
    }


def _events(stream: StreamAnnotator, *events: str) -> list[str]:
    return [sent for event in events for sent in stream.events(event)]


def test_a_chat_streams_moderation_has_its_own_chunk_before_the_end() -> None:
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    last = f"data: {json.dumps(chunk | {'choices': []})}"
    first, moderation, done = _events(StreamAnnotator(call(CHAT, BLOCKED)), last, "data: [DONE]")
    assert (first, done) == (last, "data: [DONE]")
    parsed = ChatCompletionChunk.model_validate(json.loads(moderation.removeprefix("data: ")))
    assert (parsed.id, parsed.model, parsed.choices) == ("1", "m", [])
    assert parsed.moderation is not None
    assert parsed.moderation.output.type == "moderation_results"


def test_a_blocked_response_stream_ends_incomplete() -> None:
    data = {"type": "response.completed", "response": {"model": "m", "status": "completed"}}
    event = f"event: response.completed\ndata: {json.dumps(data)}"
    (sent,) = _events(StreamAnnotator(call(RESPONSES, BLOCKED)), event)
    name, _, rest = sent.partition("\n")
    assert name == "event: response.incomplete"
    ended = json.loads(rest.removeprefix("data: "))
    assert ended["type"] == "response.incomplete"
    assert ended["response"]["incomplete_details"] == {"reason": "content_filter"}


def test_a_blocked_message_stream_ends_in_a_refusal() -> None:
    data = {"type": "message_delta", "delta": {"stop_reason": None}}
    event = f"event: message_delta\ndata: {json.dumps(data)}"
    (sent,) = _events(StreamAnnotator(call(MESSAGES, BLOCKED)), event)
    assert '"stop_reason": "refusal"' in sent


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, "/v1/completions"])
def test_text_that_names_an_event_is_left_alone(route: str) -> None:
    text = 'data: {"delta": "response.completed and message_delta and data: [DONE]"}'
    assert _events(StreamAnnotator(call(route, BLOCKED)), text) == [text]


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, "/v1/completions"])
def test_an_unflagged_stream_passes_untouched(route: str) -> None:
    events = ["data: {}", "event: message_delta\ndata: {}", "data: [DONE]"]
    assert _events(StreamAnnotator(call(route, ruling(0.1))), *events) == events


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (CHAT, ["", "[DONE]"]),
        ("/v1/completions", ["", "[DONE]"]),
        (RESPONSES, ["error"]),
        (MESSAGES, ["error"]),
    ],
)
def test_a_stream_on_which_the_guard_failed_ends_in_that_error(
    route: str, expected: list[str]
) -> None:
    """Whatever vLLM makes of it is not sent, nor any finish."""
    failing = call(route, wants_moderation=True)
    stream = StreamAnnotator(failing)
    before = 'event: response.output_text.delta\ndata: {"sequence_number": 4}'
    assert _events(stream, before) == [before]
    failing.error = CriticUnavailable("The critique did not finish in time.")
    finish = '{"choices": [{"finish_reason": "stop"}], "type": "response.completed"}'
    first, *more = _events(stream, f"data: {finish}", "data: [DONE]")
    name = first.partition("\n")[0].removeprefix("event: ") if first.startswith("event") else ""
    assert [name, *(each.removeprefix("data: ") for each in more)] == expected
    assert "did not finish in time" in first
    assert "critic_unavailable" in first
    assert "finish_reason" not in first
    if route == RESPONSES:
        assert '"sequence_number": 5' in first
