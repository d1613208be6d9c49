"""The moderation field and withheld answers in each API's format, checked with openai's types."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types import ErrorResponse
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion import Moderation as CompletionModeration
from openai.types.chat.chat_completion import ModerationOutputModerationResultsResult
from openai.types.responses import ResponseErrorEvent
from openai.types.responses.response import Moderation as ResponseModeration
from vllm.sampling_params import RequestOutputKind

from guard.call import GuardCall, Ruling, StreamMode
from guard.errors import CriticUnavailable
from guard.policy import Action, Decision
from guard.scripted import Script
from guard.verdict import CATEGORIES, Verdict
from server.guarded.annotate import (
    StreamAnnotator,
    annotate_body,
    completion_moderation,
    response_moderation,
)
from tests.scripted import Bench

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def ruling(harm: float, action: Action = Action.PASS, scores: bool = True) -> Ruling:
    """Returns a verdict with all its harm in violence."""
    shares = {name: harm if name == "violence" else 0.0 for name in CATEGORIES}
    flagged = () if action is Action.PASS else ("violence",)
    return Ruling(
        Verdict(harm, shares if scores else None), Decision(action, flagged, "scripted"), 7
    )


def call(route: str, *outputs: Ruling, **fields: Any) -> GuardCall:
    rulings = {("req", index): output for index, output in enumerate(outputs)}
    return GuardCall(route=route, output_rulings=rulings, **fields)


BLOCKED = ruling(0.9, Action.BLOCK)
REVISED = ruling(0.9, Action.REVISE)
WITHHELD = pytest.mark.parametrize("withheld", [BLOCKED, REVISED], ids=["blocked", "revised"])
FAILED = Ruling(None, Decision(Action.PASS, (), "failing open"), 0)


def test_a_completions_moderation_is_as_openai_types_it() -> None:
    guard_call = call(CHAT, ruling(0.2), BLOCKED, wants_moderation=True, input_ruling=ruling(0.1))
    parsed = CompletionModeration.model_validate(completion_moderation(guard_call, "m"))
    assert parsed.input.type == "moderation_results"
    assert parsed.output.type == "moderation_results"
    assert [result.flagged for result in parsed.output.results] == [False, True]
    flagged = parsed.output.results[1]
    assert tuple(flagged.categories) == CATEGORIES
    assert [name for name, hit in flagged.categories.items() if hit] == ["violence"]
    assert flagged.category_scores["violence"] == 0.9
    assert set(map(tuple, flagged.category_applied_input_types.values())) == {("text",)}


def test_a_responses_moderation_is_the_worst_result() -> None:
    guard_call = call(
        RESPONSES, ruling(0.2), BLOCKED, wants_moderation=True, input_ruling=ruling(0.1)
    )
    parsed = ResponseModeration.model_validate(response_moderation(guard_call, "m"))
    assert parsed.output.type == "moderation_result"
    assert parsed.output.flagged
    assert parsed.input.type == "moderation_result"
    assert not parsed.input.flagged


@pytest.mark.parametrize(
    ("render", "model"),
    [(completion_moderation, CompletionModeration), (response_moderation, ResponseModeration)],
)
def test_unjudged_and_failed_sides_say_so(render: Any, model: Any) -> None:
    parsed = model.model_validate(render(call(CHAT, FAILED), "m"))
    assert (parsed.input.type, parsed.input.code) == ("error", "not_run")
    assert (parsed.output.type, parsed.output.code) == ("error", "critic_unavailable")
    parsed = model.model_validate(render(call(CHAT), "m"))
    assert (parsed.output.type, parsed.output.code) == ("error", "not_run")


def test_every_choice_has_its_own_result_in_order() -> None:
    states = (ruling(0.1, scores=False), FAILED, BLOCKED, REVISED, ruling(0.2))
    results = completion_moderation(call(CHAT, *states), "m")["output"]["results"]
    assert [result["type"] for result in results] == [
        "moderation_result",
        "error",
        "moderation_result",
        "moderation_result",
        "moderation_result",
    ]
    judged = [result for result in results if result["type"] != "error"]
    assert [result["action"] for result in judged] == ["pass", "block", "revise", "pass"]
    assert [result["flagged"] for result in judged] == [False, True, True, False]
    assert [result["checked_characters"] for result in judged] == [7, 7, 7, 7]
    # No request asked for the first answer's scores, so they were not read and are not reported.
    assert [len(result["category_scores"]) for result in judged] == [0, 13, 13, 13]
    assert results[1]["code"] == "critic_unavailable"
    assert "flagged" not in results[1]
    without = [result for result in results if result is not results[1]]
    for result in without:
        ModerationOutputModerationResultsResult.model_validate(result)


@pytest.mark.parametrize("stream", [StreamMode.BUFFER, StreamMode.WINDOW])
async def test_a_failed_critique_affects_only_its_own_choice(
    make_bench: Callable[..., Bench], stream: StreamMode
) -> None:
    answers = ("All is well.", "This one breaks the critic.", "Take the forbidden key.")

    def harm(prompt: str) -> float:
        if "breaks" in prompt:
            raise RuntimeError("scripted")
        return 0.9 if "forbidden" in prompt else 0.1

    policy = '[default]\nthreshold = 0.5\naction = "block"\n'
    script = Script(lambda prompt: answers, harm)
    bench = make_bench(script, policy=policy, fail_open=True, stream=stream, windows=(64, 1, 64))
    await bench.ask(kind=RequestOutputKind.DELTA, n=3)
    passed, failed, blocked = completion_moderation(bench.call, "m")["output"]["results"]
    assert (passed["action"], passed["checked_characters"]) == ("pass", len(answers[0]))
    assert (failed["type"], failed["code"]) == ("error", "critic_unavailable")
    assert (blocked["action"], blocked["checked_characters"]) == ("block", len(answers[2]))


def test_flagged_input_that_was_answered_is_not_called_blocked() -> None:
    for input_ruling, action in ((BLOCKED, "annotate"), (ruling(0.1), "pass")):
        field = completion_moderation(call(CHAT, ruling(0.1), input_ruling=input_ruling), "m")
        (result,) = field["input"]["results"]
        assert (result["action"], result["flagged"]) == (action, input_ruling is BLOCKED)


@pytest.mark.parametrize(
    ("rulings", "expected"),
    [
        ((FAILED, ruling(0.2)), "critic_unavailable"),
        ((FAILED, ruling(0.6, Action.ANNOTATE)), "annotate"),
        ((ruling(0.9, Action.ANNOTATE), ruling(0.6, Action.BLOCK)), "block"),
        ((ruling(0.2), ruling(0.1, scores=False)), "pass"),
    ],
)
def test_a_responses_moderation_is_the_worst_of_its_answers(
    rulings: tuple[Ruling, ...], expected: str
) -> None:
    for ordered in (rulings, rulings[::-1]):
        output = response_moderation(call(RESPONSES, *ordered), "m")["output"]
        assert output.get("action", output.get("code")) == expected


@WITHHELD
def test_a_withheld_response_is_incomplete_by_content_filter(withheld: Ruling) -> None:
    body = annotate_body(call(RESPONSES, withheld), {"model": "m", "status": "completed"})
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "content_filter"}
    assert body["moderation"]["output"]["action"] == withheld.decision.action


@WITHHELD
def test_a_withheld_message_is_a_refusal(withheld: Ruling) -> None:
    body = {"model": "m", "stop_reason": None}
    assert annotate_body(call(MESSAGES, withheld), body)["stop_reason"] == "refusal"
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
    guard_call = call(CHAT, BLOCKED, wants_moderation=True)
    first, moderation, done = _events(StreamAnnotator(guard_call), last, "data: [DONE]")
    assert (first, done) == (last, "data: [DONE]")
    parsed = ChatCompletionChunk.model_validate(json.loads(moderation.removeprefix("data: ")))
    assert (parsed.id, parsed.model, parsed.choices) == ("1", "m", [])
    assert parsed.moderation is not None
    assert parsed.moderation.output.type == "moderation_results"


def test_a_flagged_stream_gets_no_chunk_that_was_not_asked_for() -> None:
    """Many clients read `chunk.choices[0]` of every chunk."""
    choice = {"index": 0, "delta": {"content": "No."}, "finish_reason": None}
    ended = {"index": 0, "delta": {}, "finish_reason": "content_filter"}
    chunks = [{"id": "1", "model": "m", "choices": [it]} for it in (choice, ended)]
    events = [*(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
    first, last, done = _events(StreamAnnotator(call(CHAT, BLOCKED)), *events)
    assert (first, done) == (events[0], events[2])
    sent = json.loads(last.removeprefix("data: "))
    assert sent.pop("moderation")["output"]["results"][0]["action"] == "block"
    assert sent == chunks[1]


def test_a_comment_that_keeps_the_connection_alive_disturbs_nothing() -> None:
    events = ['data: {"id": "1", "model": "m"}', ": keep-alive", "data: [DONE]"]
    guard_call = call(CHAT, BLOCKED, wants_moderation=True)
    *before, moderation, done = _events(StreamAnnotator(guard_call), *events)
    assert [*before, done] == events
    assert json.loads(moderation.removeprefix("data: "))["id"] == "1"


@WITHHELD
def test_a_withheld_response_stream_ends_incomplete(withheld: Ruling) -> None:
    data = {"type": "response.completed", "response": {"model": "m", "status": "completed"}}
    event = f"event: response.completed\ndata: {json.dumps(data)}"
    (sent,) = _events(StreamAnnotator(call(RESPONSES, withheld)), event)
    name, _, rest = sent.partition("\n")
    assert name == "event: response.incomplete"
    ended = json.loads(rest.removeprefix("data: "))
    assert ended["type"] == "response.incomplete"
    assert ended["response"]["incomplete_details"] == {"reason": "content_filter"}


@WITHHELD
def test_a_withheld_message_stream_ends_in_a_refusal(withheld: Ruling) -> None:
    data = {"type": "message_delta", "delta": {"stop_reason": None}}
    event = f"event: message_delta\ndata: {json.dumps(data)}"
    (sent,) = _events(StreamAnnotator(call(MESSAGES, withheld)), event)
    assert '"stop_reason": "refusal"' in sent


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, "/v1/completions"])
def test_text_that_names_an_event_is_left_alone(route: str) -> None:
    text = 'data: {"delta": "response.completed and message_delta and data: [DONE]"}'
    assert _events(StreamAnnotator(call(route, BLOCKED)), text) == [text]


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, "/v1/completions"])
def test_an_unflagged_stream_passes_untouched(route: str) -> None:
    events = ["data: {}", "event: message_delta\ndata: {}", "data: [DONE]"]
    assert _events(StreamAnnotator(call(route, ruling(0.1))), *events) == events


def test_a_stream_that_vllm_ended_with_an_error_gets_no_moderation() -> None:
    events = ['data: {"error": {"message": "gone", "code": 500}}', "data: [DONE]"]
    assert _events(StreamAnnotator(call(CHAT, BLOCKED)), *events) == events


def _failed(route: str, *before: str) -> tuple[str, dict[str, Any]]:
    """Returns name and object of the event that ends a stream after the critic failed."""
    stream = StreamAnnotator(call(route))
    _events(stream, *before)
    *names, data = stream.failure(CriticUnavailable("late")).split("\n")
    return "".join(names), json.loads(data.removeprefix("data: "))


OURS = {
    "message": "late",
    "type": "server_error",
    "param": None,
    "code": "critic_unavailable",
}


@pytest.mark.parametrize("route", [CHAT, "/v1/completions"])
def test_a_failure_ends_a_stream_of_chunks_with_an_error(route: str) -> None:
    assert _failed(route) == ("", {"error": OURS})


def test_a_failure_ends_a_response_stream_with_an_error_event() -> None:
    before = 'event: response.output_text.delta\ndata: {"sequence_number": 4, "delta": "a"}'
    name, data = _failed(RESPONSES, before)
    assert name == "event: error"
    event = ResponseErrorEvent.model_validate(data)
    assert (event.code, event.message, event.sequence_number) == ("critic_unavailable", "late", 5)
    # OpenAI's client raises an error for this field, and yields events without it.
    assert data["error"] == OURS


def test_a_failure_before_any_event_is_the_first() -> None:
    _, data = _failed(RESPONSES)
    assert data["sequence_number"] == 0


def test_a_failure_ends_a_message_stream_with_an_error_event() -> None:
    name, data = _failed(MESSAGES)
    assert name == "event: error"
    error = ErrorResponse.model_validate({"request_id": None} | data).error
    assert (error.type, error.message) == ("api_error", "late")
    assert data["error"]["code"] == "critic_unavailable"
