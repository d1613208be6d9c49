"""When responses are sent: nothing before the guard's outcome is known."""

import asyncio
import json

import pytest
from starlette.types import Message

from guard.call import GuardCall
from guard.errors import CriticUnavailable
from server.guarded.response import ADAPTER_HEADER, GuardedResponse
from tests.server.guarded.test_annotate import BLOCKED, CHAT, MESSAGES, RESPONSES, ruling

JSON, STREAM = b"application/json", b"text/event-stream; charset=utf-8"


class Wire:
    """Records what the client would receive."""

    def __init__(self, call: GuardCall) -> None:
        self.sent: list[Message] = []
        self.response = GuardedResponse(call, {"type": "http"}, self._receive, self._send)

    async def _receive(self) -> Message:
        await asyncio.Event().wait()
        return {}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def head(self, media_type: bytes, status: int = 200) -> None:
        headers = [(b"content-type", media_type)]
        await self.response.send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )

    async def body(self, body: bytes, more: bool = False) -> None:
        await self.response.send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


@pytest.fixture
def call() -> GuardCall:
    return GuardCall(route=CHAT, adapter="base")


async def test_an_unflagged_body_passes_untouched(call: GuardCall) -> None:
    call.output_rulings["req", 0] = ruling(0.1)
    wire = Wire(call)
    await wire.head(JSON)
    await wire.body(b'{"a":', more=True)
    await wire.body(b" 1}")
    assert wire.text == '{"a": 1}'
    assert wire.headers[ADAPTER_HEADER.encode()] == b"base"


async def test_a_flagged_body_is_annotated_and_its_length_is_right(call: GuardCall) -> None:
    call.output_rulings["req", 0] = BLOCKED
    wire = Wire(call)
    await wire.head(JSON)
    await wire.body(b'{"model":', more=True)
    await wire.body(b'"m", "choices": []}')
    assert json.loads(wire.text)["moderation"]["output"]["results"][0]["flagged"]
    assert int(wire.headers[b"content-length"]) == len(wire.text)


async def test_a_stream_waits_for_the_first_ruling(call: GuardCall) -> None:
    call.route = RESPONSES
    wire = Wire(call)
    await wire.head(STREAM)
    await wire.body(b"event: response.created\ndata: {}\n\n", more=True)
    assert wire.sent == []
    call.output_rulings["req", 0] = ruling(0.1)
    await wire.body(b"data: {}\n\n", more=True)
    assert wire.text == "event: response.created\ndata: {}\n\ndata: {}\n\n"


async def test_comments_flow_while_a_stream_waits(call: GuardCall) -> None:
    wire = Wire(call)
    await wire.head(STREAM)
    await wire.body(b": keep-alive\n\n", more=True)
    assert wire.text == ": keep-alive\n\n"
    call.error = CriticUnavailable("late")
    await wire.body(b"data: [DONE]\n\n")
    assert wire.sent[0]["status"] == 200
    assert "critic_unavailable" in wire.text


@pytest.mark.parametrize("media_type", [JSON, STREAM])
async def test_a_guard_failure_is_a_true_503_plain_and_streamed(
    call: GuardCall, media_type: bytes
) -> None:
    wire = Wire(call)
    await wire.head(media_type, status=200)
    call.error = CriticUnavailable("late")
    await wire.body(b'data: {"error": "vLLM says it otherwise"}\n\n', more=True)
    await wire.body(b"data: [DONE]\n\n")
    assert wire.sent[0]["status"] == 503
    assert json.loads(wire.text)["error"]["code"] == "critic_unavailable"


@pytest.mark.parametrize("route", [CHAT, "/v1/completions", RESPONSES, MESSAGES])
async def test_a_failure_after_text_has_flowed_ends_the_stream_with_our_error(
    call: GuardCall, route: str
) -> None:
    call.route, call.streaming_started = route, True
    wire = Wire(call)
    await wire.head(STREAM)
    await wire.body(b'data: {"text": "a"}\n\n', more=True)
    call.error = CriticUnavailable("late")
    await wire.body(b'data: {"error": "vLLM says it otherwise"}\n\n', more=True)
    await wire.body(b"data: [DONE]\n\n", more=True)
    await wire.body(b"")
    assert wire.sent[0]["status"] == 200
    first, last, end = wire.text.split("\n\n")
    assert (first, end) == ('data: {"text": "a"}', "")
    assert "critic_unavailable" in last
    assert "otherwise" not in wire.text
    assert [message.get("more_body") for message in wire.sent[1:]] == [True, False]


async def test_vllms_own_errors_pass_with_their_status(call: GuardCall) -> None:
    wire = Wire(call)
    await wire.head(JSON, status=404)
    await wire.body(b'{"error": {}}')
    assert (wire.sent[0]["status"], wire.text) == (404, '{"error": {}}')
