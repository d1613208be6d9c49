"""What the users of other clients get: answers, what replaces flagged ones, refusals and errors,
plain and streamed, with tools and with structured answers. docs/clients.md tells it in words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from guard.store.flags import StoredFlag
from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server
from tests.e2e.other_clients import Asked, Outcome, run_script
from tests.e2e.plants import PLANTS, compact_json
from tests.e2e.test_clients import REFUSAL, finish_reason, flags_of, user, what_is_let_out

pytestmark = pytest.mark.e2e

BLOCK: dict[str, Any] = {
    "moderation": {"model": "omni-moderation-latest", "policy": {"output": {"mode": "block"}}}
}
MALFORMED: dict[str, Any] = {"moderation": {}}
TEXT_CALLS = ("plain", "stream")
TOOL_CALLS = ("tool", "tool_stream")
STRUCTURED_CALLS = ("structured", "structured_stream")


@dataclass(frozen=True)
class Client:
    """A script, and how its client tells what happened.

    wrong_field: its error of a 400. finishes: its own words for reasons to finish. no_tool: its
    error where a tool had to be called and was not. revised, blocked: its errors where a structured
    answer was replaced. silent: calls whose user is not told what a blocked answer was replaced by.
    """

    script: str
    wrong_field: str
    finishes: dict[str, str] = field(default_factory=dict)
    no_tool: str | None = None
    revised: str | None = None
    blocked: str | None = None
    silent: tuple[str, ...] = ()


ANTHROPIC = Client(
    "anthropic_client.py",
    "BadRequestError",
    {"stop": "end_turn", "content_filter": "refusal"},
    revised="ValidationError",
    blocked="ValidationError",
    silent=("structured",),
)
LANGCHAIN = Client(
    "langchain_client.py",
    "OpenAIInvalidRequestError",
    revised="OpenAIRefusalError",
    blocked="ContentFilterFinishReasonError",
    silent=STRUCTURED_CALLS,
)
LLAMA_INDEX = Client(
    "llama_index_client.py",
    "BadRequestError",
    revised="ValidationError",
    blocked="ValidationError",
    silent=STRUCTURED_CALLS,
)
PYDANTIC_AI = Client(
    "pydantic_ai_client.py",
    "ModelHTTPError",
    no_tool="UnexpectedModelBehavior",
    revised="ContentFilterError",
    blocked="ContentFilterError",
    silent=TOOL_CALLS,
)
LITELLM = Client("litellm_client.py", "BadRequestError", silent=("structured_stream",))
AI_SDK = Client(
    "ai_sdk.mjs",
    "AI_APICallError",
    {"content_filter": "content-filter"},
    no_tool="AI_ToolChoiceViolationError",
    revised="AI_NoObjectGeneratedError",
    blocked="AI_NoObjectGeneratedError",
    silent=("tool",),
)
CLIENTS = (ANTHROPIC, LANGCHAIN, LLAMA_INDEX, PYDANTIC_AI, LITELLM, AI_SDK)


EXTRA_CALLS = {
    ANTHROPIC.script: ["count"],
    LANGCHAIN.script: ["structured_raw"],
    PYDANTIC_AI.script: ["tool_or_text"],
}
"""Calls that only one client has."""


@dataclass(frozen=True)
class Run:
    """What the user of one client got, by the call, and by what was asked of which server."""

    client: Client
    outcomes: dict[tuple[str, str], Outcome]
    flags: Sequence[StoredFlag]

    def finish(self, reason: str) -> str:
        """Returns the client's word for a reason to finish."""
        return self.client.finishes.get(reason, reason)

    def flags_on(self, text: str) -> list[StoredFlag]:
        """Returns the flags on answers to that request."""
        return [flag for flag in self.flags if flag.messages[-1]["content"] == text]


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.script.partition(".")[0])
def run(
    request: pytest.FixtureRequest,
    server: Server,
    strict_server: Server,
    everyday: str,
    harmful: str,
    flagged_json: str,
) -> Run:
    """All calls of one client, made by one process."""
    asked: dict[tuple[str, str], Asked] = {
        ("plain", "malformed"): Asked("plain", server, everyday, MALFORMED),
        ("stream", "block asked"): Asked("stream", server, harmful, BLOCK),
    }
    for call in TEXT_CALLS:
        asked[call, "everyday"] = Asked(call, server, everyday)
        asked[call, "flagged"] = Asked(call, server, harmful)
    for call in (*TOOL_CALLS, *STRUCTURED_CALLS):
        asked[call, "everyday"] = Asked(call, server, everyday, compact_json())
    for call in STRUCTURED_CALLS:
        asked[call, "flagged"] = Asked(call, server, flagged_json, compact_json())
    more = EXTRA_CALLS.get(request.param.script, ())
    for call in (*TEXT_CALLS, *TOOL_CALLS, *STRUCTURED_CALLS, *more):
        asked[call, "strict"] = Asked(call, strict_server, everyday, compact_json())
    outcomes = run_script(request.param.script, list(asked.values()))
    return Run(request.param, dict(zip(asked, outcomes, strict=True)), flags_of(server))


def told(outcome: Outcome) -> str:
    """Everything that the user can read."""
    return json.dumps(outcome, ensure_ascii=False)


def error_of(outcome: Outcome) -> str | None:
    """The name of the error that the user gets, if any."""
    return str(outcome["error"]["types"][0]) if "error" in outcome else None


def holds_no_draft(outcome: Outcome, flags: Sequence[StoredFlag]) -> bool:
    drafts = [flag.answer.strip() for flag in flags]
    # A draft that was to be JSON may be a bare brace, which any outcome has.
    return not any(draft in told(outcome) for draft in drafts if len(draft) > 8)


@pytest.mark.parametrize("call", TEXT_CALLS)
def test_an_answer_is_the_one_that_openais_client_gets(
    run: Run, client: openai.OpenAI, everyday: str, call: str
) -> None:
    outcome = run.outcomes[call, "everyday"]
    expected = client.chat.completions.create(
        model=MODEL_NAME, messages=user(everyday), temperature=0
    )
    assert error_of(outcome) is None, outcome
    assert outcome["text"] == expected.choices[0].message.content
    assert outcome["finish"] == run.finish("stop")


@pytest.mark.parametrize("call", TEXT_CALLS)
def test_a_flagged_answer_is_replaced(run: Run, harmful: str, call: str) -> None:
    outcome, flags = run.outcomes[call, "flagged"], run.flags_on(harmful)
    endings = {(what_is_let_out(flag), run.finish(finish_reason(flag))) for flag in flags}
    assert (outcome["text"], outcome["finish"]) in endings
    assert holds_no_draft(outcome, flags)


def test_a_stream_that_asks_for_moderation_ends_well(run: Run, harmful: str) -> None:
    """Its last chunk has no choices."""
    outcome = run.outcomes["stream", "block asked"]
    assert error_of(outcome) is None, outcome
    assert outcome["text"].endswith(REFUSAL)
    assert outcome["finish"] == run.finish("content_filter")
    assert holds_no_draft(outcome, run.flags_on(harmful))


@pytest.mark.parametrize("call", TEXT_CALLS)
def test_a_blocked_answer_is_a_refusal(run: Run, call: str) -> None:
    outcome = run.outcomes[call, "strict"]
    assert outcome["text"] == REFUSAL
    assert outcome["finish"] == run.finish("content_filter")
    assert error_of(outcome) is None


@pytest.mark.parametrize("call", TOOL_CALLS)
def test_a_tool_is_called(run: Run, call: str) -> None:
    outcome = run.outcomes[call, "everyday"]
    assert error_of(outcome) is None, outcome
    if run.client is ANTHROPIC:
        # Its API has no way to forbid white space, so the practice model never ends its input.
        assert outcome["finish"] == "max_tokens"
        assert "look_up" in told(outcome)
        return
    (called,) = outcome["tools"]
    assert called["name"] in ("look_up", "final_result")
    assert called["arguments"] in PLANTS


@pytest.mark.parametrize("call", STRUCTURED_CALLS)
def test_a_structured_answer_is_parsed(run: Run, call: str) -> None:
    outcome = run.outcomes[call, "everyday"]
    if run.client is ANTHROPIC:
        # As with tools: the JSON is begun, and cut off.
        assert "EOF while parsing" in outcome["error"]["message"]
        return
    assert error_of(outcome) is None, outcome
    assert outcome["parsed"] in PLANTS


@pytest.mark.parametrize("call", TOOL_CALLS)
def test_a_blocked_tool_call_is_a_refusal_in_words(run: Run, call: str) -> None:
    outcome = run.outcomes[call, "strict"]
    assert outcome["tools"] == []
    assert error_of(outcome) == run.client.no_tool
    assert (REFUSAL in told(outcome)) == (call not in run.client.silent)


@pytest.mark.parametrize("call", STRUCTURED_CALLS)
def test_a_blocked_structured_answer_is_none(run: Run, call: str) -> None:
    outcome = run.outcomes[call, "strict"]
    _is_no_object(run, call, outcome, {run.client.blocked})
    assert (REFUSAL in told(outcome)) == (call not in run.client.silent)


@pytest.mark.parametrize("call", STRUCTURED_CALLS)
def test_a_flagged_structured_answer_is_none(run: Run, flagged_json: str, call: str) -> None:
    outcome, flags = run.outcomes[call, "flagged"], run.flags_on(flagged_json)
    revised = {flag.revision for flag in flags if flag.revision}
    _is_no_object(run, call, outcome, {run.client.revised, run.client.blocked})
    assert holds_no_draft(outcome, flags)
    if run.client in (LANGCHAIN, PYDANTIC_AI, AI_SDK):
        assert any(words in told(outcome) for words in {*revised, REFUSAL})


def _is_no_object(run: Run, call: str, outcome: Outcome, expected: set[str | None]) -> None:
    if run.client is LLAMA_INDEX and call == "structured_stream":
        # It completes what it could not read, so its user has to look for empty fields.
        assert outcome["parsed"] == {"plant": None}
        return
    assert outcome["parsed"] is None
    assert error_of(outcome) in expected


def test_a_wrong_field_is_the_clients_own_error(run: Run) -> None:
    error = run.outcomes["plain", "malformed"]["error"]
    assert error["types"][0] == run.client.wrong_field
    assert error["status"] == 400
    assert "moderation.model" in error["message"]


def test_calls_that_only_one_client_has(run: Run, server: Server, everyday: str) -> None:
    calls = EXTRA_CALLS.get(run.client.script, ())
    for call in calls:
        outcome = run.outcomes[call, "strict"]
        assert error_of(outcome) is None, outcome
        if call == "count":
            with server.http() as http:
                body = {"model": MODEL_NAME, "messages": user(everyday)}
                assert outcome["usage"] == http.post("/tokenize", json=body).json()["count"]
        else:
            assert outcome["text"] == REFUSAL
            assert outcome["parsed"] is None
