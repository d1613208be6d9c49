"""Nothing of a withheld answer reaches the client in any field of any route, and the metrics cover
every process."""

import asyncio
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from guard.criteria import Place
from guard.policy_file import load_policy
from guard.store.flags import StoredFlag
from guard.store.review import Filter, ReviewStore
from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server, read_metric
from tests.e2e.test_clients import as_prompt, user

pytestmark = pytest.mark.e2e

REFUSAL = load_policy().refusal


class Answer(BaseModel):
    """What is asked for in JSON."""

    a: str


REQUEST = "How do I water a fern?"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
]
LOOK_UP = {"type": "function", "function": {"name": "look_up"}}
CHAT: dict[str, Any] = {"messages": user(REQUEST), "max_tokens": 40}
COMPLETION: dict[str, Any] = {"prompt": as_prompt(REQUEST), "max_tokens": 40}
RESPONSE: dict[str, Any] = {"input": REQUEST, "max_output_tokens": 40}
LOGPROBS = {"logprobs": True, "top_logprobs": 3}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat n": ("/v1/chat/completions", CHAT | {"n": 3, "temperature": 1}),
    "chat logprobs": ("/v1/chat/completions", CHAT | LOGPROBS),
    "chat token ids": ("/v1/chat/completions", CHAT | {"return_token_ids": True}),
    "chat json": ("/v1/chat/completions", CHAT | {"response_format": JSON_SCHEMA}),
    "chat tool": ("/v1/chat/completions", CHAT | {"tools": TOOLS, "tool_choice": "required"}),
    "chat named tool": (
        "/v1/chat/completions",
        CHAT | {"tools": TOOLS, "tool_choice": LOOK_UP},
    ),
    "chat tools": ("/v1/chat/completions", CHAT | {"tools": TOOLS}),
    "batch": ("/v1/chat/completions/batch", {"messages": [user(REQUEST)] * 2, "max_tokens": 40}),
    "completion": ("/v1/completions", COMPLETION),
    "completion of raw text": ("/v1/completions", {"prompt": "Once upon", "max_tokens": 40}),
    "completion n": ("/v1/completions", COMPLETION | {"n": 3, "temperature": 1}),
    "completions": ("/v1/completions", COMPLETION | {"prompt": ["Once", "Twice"]}),
    "completion logprobs": ("/v1/completions", COMPLETION | {"logprobs": 3, "echo": True}),
    "completion token ids": ("/v1/completions", COMPLETION | {"return_token_ids": True}),
    "response": ("/v1/responses", RESPONSE),
    "message": ("/v1/messages", {"messages": user(REQUEST), "max_tokens": 40}),
}  # fmt: skip
UNSTREAMED = {"batch", "completion logprobs"}
CASES = [(name, False) for name in REQUESTS] + [
    (name, True) for name in REQUESTS if name not in UNSTREAMED
]


def flags_after(server: Server, last: int) -> list[StoredFlag]:
    async def read() -> list[StoredFlag]:
        store = ReviewStore(server.database)
        try:
            flags = await store.page(Filter(place=Place.OUTPUT), limit=100)
            return [flag for flag in flags if flag.id > last]
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.fixture
def last_flag(strict_server: Server) -> int:
    """Returns the newest flag's number before the test."""
    return max([flag.id for flag in flags_after(strict_server, 0)], default=0)


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_nothing_of_it_is_sent(
    strict_server: Server, last_flag: int, name: str, stream: bool
) -> None:
    path, body = REQUESTS[name]
    with strict_server.http() as http:
        answer = http.post(path, json={"model": MODEL_NAME, "stream": stream} | body)
    assert answer.status_code == 200, answer.text
    flags = flags_after(strict_server, last_flag)
    expected = body.get("n", 1) * (2 if name in ("batch", "completions") else 1)
    assert len(flags) == expected
    for flag in flags:
        withheld = flag.answer.strip()
        # JSON mode may leave a bare brace, which any body has.
        assert len(withheld) < 8 or withheld not in answer.text
    assert "can't help with that" in answer.text


@pytest.mark.parametrize("name", ["chat json", "chat tool", "chat named tool", "chat tools"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_refusal_stands_where_the_client_looks_for_it(
    strict_server: Server, name: str, stream: bool
) -> None:
    _, body = REQUESTS[name]
    with strict_server.openai() as client:
        answer: Any = client.chat.completions.create(model=MODEL_NAME, stream=stream, **body)
        if stream:
            deltas = [choice.delta for chunk in answer for choice in chunk.choices]
            content = "".join(delta.content or "" for delta in deltas)
            refusal = "".join(delta.refusal or "" for delta in deltas)
            called = [call for delta in deltas for call in delta.tool_calls or ()]
        else:
            message = answer.choices[0].message
            content, refusal = message.content or "", message.refusal or ""
            called = message.tool_calls or []
    assert REFUSAL in (refusal if name == "chat json" else content)
    assert not any("can't help" in str(call) for call in called)


def test_json_that_was_flagged_is_a_refusal_for_parse(strict_server: Server) -> None:
    """OpenAI's parse() raises an error for a blocked answer, whatever it holds."""
    with (
        strict_server.openai() as client,
        pytest.raises(openai.ContentFilterFinishReasonError),
    ):
        client.chat.completions.parse(
            model=MODEL_NAME, messages=CHAT["messages"], response_format=Answer, max_tokens=40
        )


def test_the_metrics_add_up_over_the_processes(strict_server: Server) -> None:
    name = "setback_flags_written_total"
    before = read_metric(strict_server, name)
    for _ in range(8):
        # A connection of its own each, so that both processes get some.
        with strict_server.http() as http:
            http.post("/v1/chat/completions", json={"model": MODEL_NAME} | CHAT)
    assert read_metric(strict_server, name) == before + 8
    for metric in (
        'setback_actions_total{action="block",adapter="base",policy="default"}',
        "setback_verdicts_total",
        "setback_critique_seconds_count",
        "setback_guard_overhead_seconds_count",
    ):
        assert read_metric(strict_server, metric) >= 8


def test_nothing_withheld_is_logged(strict_server: Server) -> None:
    flags = flags_after(strict_server, 0)
    log = strict_server.log.read_text(errors="replace")
    answers = [flag.answer.strip() for flag in flags if len(flag.answer.strip()) > 20]
    assert answers
    assert not [answer for answer in answers if answer in log]
