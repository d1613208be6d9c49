"""OpenAI's helpers, parse() and stream(), for chats and responses, with text, tools and structured
answers: what they return and raise when an answer is judged, replaced or blocked.
"""

from dataclasses import dataclass
from typing import Any

import openai
import pytest

from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server
from tests.e2e.plants import FUNCTION, PLANTS, Answer, compact_json
from tests.e2e.test_clients import REFUSAL, flags_of, user, what_is_let_out

pytestmark = pytest.mark.e2e

TOOL: Any = {"type": "function", **FUNCTION}
TOOLS: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}


@dataclass(frozen=True)
class Outcome:
    """What a helper gives. finish: the reason, or the status of a response."""

    text: str
    finish: str | None
    parsed: Any = None
    refusal: str | None = None
    calls: tuple[Any, ...] = ()


def chat(client: openai.OpenAI, content: str, stream: bool, **more: Any) -> Outcome:
    """Asks by chat.completions.parse(), or by chat.completions.stream()."""
    fields: dict[str, Any] = {
        "model": MODEL_NAME, "messages": user(content), "temperature": 0, "max_tokens": 120,
        "extra_body": compact_json(), **more,
    }  # fmt: skip
    if not stream:
        choice = client.chat.completions.parse(**fields).choices[0]
        text = choice.message.content or ""
    else:
        with client.chat.completions.stream(**fields) as events:
            text = "".join(event.delta for event in events if event.type == "content.delta")
            choice = events.get_final_completion().choices[0]
    message = choice.message
    return Outcome(text, choice.finish_reason, message.parsed, message.refusal)


def respond(client: openai.OpenAI, content: str, stream: bool, **more: Any) -> Outcome:
    """Asks by responses.parse(), or by responses.stream()."""
    fields: dict[str, Any] = {
        "model": MODEL_NAME, "input": content, "temperature": 0, "max_output_tokens": 120,
        "extra_body": compact_json(), **more,
    }  # fmt: skip
    if not stream:
        answer: Any = client.responses.parse(**fields)
        text = answer.output_text
    else:
        with client.responses.stream(**fields) as stream_of_events:
            events = list(stream_of_events)
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        # get_final_response() raises an error where this is `response.incomplete`.
        last: Any = events[-1]
        answer = last.response
    parts = [part for item in answer.output for part in getattr(item, "content", None) or ()]
    refusals = [part.refusal for part in parts if part.type == "refusal"]
    calls = tuple(item for item in answer.output if item.type == "function_call")
    parsed = getattr(answer, "output_parsed", None)
    return Outcome(text, answer.status, parsed, "".join(refusals) or None, calls)


def let_out(server: Server, content: str) -> set[str]:
    """Returns what may stand instead of the flagged answers to a request."""
    flags = [flag for flag in flags_of(server) if flag.messages == user(content)]
    return {what_is_let_out(flag) for flag in flags}


@pytest.mark.parametrize("stream", [False, True])
def test_text(
    server: Server, client: openai.OpenAI, everyday: str, harmful: str, stream: bool
) -> None:
    plain = client.chat.completions.create(
        model=MODEL_NAME, messages=user(everyday), temperature=0, max_tokens=120
    )
    for ask in (chat, respond):
        # The same answer, although white space is forbidden where JSON is: it has none of its own.
        assert ask(client, everyday, stream, extra_body={}).text == plain.choices[0].message.content
        assert ask(client, harmful, stream, extra_body={}).text in let_out(server, harmful)


@pytest.mark.parametrize("stream", [False, True])
def test_a_structured_answer(client: openai.OpenAI, everyday: str, stream: bool) -> None:
    in_chat = chat(client, everyday, stream, response_format=Answer)
    in_response = respond(client, everyday, stream, text_format=Answer)
    assert in_chat.parsed.model_dump() in PLANTS
    assert in_response.parsed.model_dump() in PLANTS
    assert (in_chat.finish, in_response.finish) == ("stop", "completed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_revised_structured_answer_is_a_refusal(
    server: Server, client: openai.OpenAI, flagged_json: str, stream: bool
) -> None:
    in_chat = chat(client, flagged_json, stream, response_format=Answer)
    in_response = respond(client, flagged_json, stream, text_format=Answer)
    for outcome in (in_chat, in_response):
        assert outcome.refusal in let_out(server, flagged_json)
        assert outcome.parsed is None
        assert outcome.text == ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_structured_answer(strict_server: Server, everyday: str, stream: bool) -> None:
    """The helpers of chats raise an error without its words, those of responses return it."""
    with strict_server.openai() as client:
        with pytest.raises(openai.ContentFilterFinishReasonError):
            chat(client, everyday, stream, response_format=Answer)
        outcome = respond(client, everyday, stream, text_format=Answer)
    assert outcome == Outcome("", "incomplete", None, REFUSAL)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_in_a_response(client: openai.OpenAI, everyday: str, stream: bool) -> None:
    (called,) = respond(client, everyday, stream, **TOOLS).calls
    assert called.name == "look_up"
    assert called.parsed_arguments in (*PLANTS, None)
    assert Answer.model_validate_json(called.arguments)


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_tool_call_is_a_refusal(
    strict_server: Server, everyday: str, stream: bool
) -> None:
    with strict_server.openai() as client:
        outcome = respond(client, everyday, stream, **TOOLS)
    assert outcome == Outcome(REFUSAL, "incomplete")


def test_a_blocked_stream_has_no_final_response(strict_server: Server, everyday: str) -> None:
    with (
        strict_server.openai() as client,
        client.responses.stream(model=MODEL_NAME, input=everyday) as events,
        pytest.raises(RuntimeError, match=r"response\.completed"),
    ):
        events.get_final_response()
