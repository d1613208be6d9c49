"""An API process without the guard fails to start; with it, each request has its call."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id
from starlette.datastructures import State
from starlette.types import Message, Receive, Scope, Send
from vllm.exceptions import VLLMValidationError

from guard.adapter_folder import AdapterFolder
from guard.adapters import AdapterLimits, Adapters, adapter_name
from guard.call import GuardCall, current_call
from guard.errors import StoreUnavailable
from guard.policies import Policies, PolicySet
from guard.policy import Policy
from guard.policy_file import load_policy
from guard.rollouts import Rollouts
from guard.scripted import Script
from server.auth.access import CALLER
from server.guarded.middleware import GuardMiddleware
from server.launch.guarded_handlers import install_guard
from tests.adapters import MemoryRegistry, MemoryRollouts, write_adapter
from tests.scripted import Bench, Observed
from tests.server.guarded.test_annotate import BLOCKED

CHAT = "/v1/chat/completions"
ADAPTER = b"x-setback-adapter"
BLOCK = '[default]\nthreshold = 0.5\naction = "block"\n'


def application(state: State) -> Any:
    return SimpleNamespace(state=state)


async def run(app: Any, scope: Scope, body: bytes = b"{}") -> list[Message]:
    """Returns all messages sent in response to one request or to the lifespan's start."""
    return await run_through(GuardMiddleware(app), scope, body)


async def run_through(middleware: GuardMiddleware, scope: Scope, body: bytes) -> list[Message]:
    """The same through a middleware that may have served other requests."""
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await middleware(scope, receive, send)
    return sent


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": f"{scope['type']}.reached", "call": current_call.get()})


async def test_an_unguarded_process_does_not_start() -> None:
    sent = await run(reached, {"type": "lifespan", "app": application(State({}))})
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "unguarded" in sent[0]["message"]


async def test_a_guarded_process_starts(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    state = State({})
    install_guard(state, bench.engine, bench.guarded)
    sent = await run(reached, {"type": "lifespan", "app": application(state)})
    assert sent[0]["type"] == "lifespan.reached"


def serving(adapters: Adapters, policy: Policy | None = None) -> Any:
    """An application whose requests use `adapters` and the policy."""
    policies = Policies(PolicySet(policy or load_policy()))
    state = SimpleNamespace(rollouts=Rollouts(adapters, MemoryRollouts()), policies=policies)
    return application(State({"setback": state}))


NO_LORA = AdapterLimits(AdapterFolder(Path("none")), "rev-1", max_rank=0, slots=0)
BASE_ALONE = serving(Adapters(None, MemoryRegistry(), NO_LORA, Observed()))


def http(path: str, method: str = "POST", root_path: str = "", app: Any = BASE_ALONE) -> Scope:
    named = {"type": "http", "path": path, "method": method, "root_path": root_path}
    return {**named, "headers": [], "app": app}


@pytest.mark.parametrize(
    ("scope", "guarded"),
    [
        (http(CHAT), True),
        (http("/proxy" + CHAT, root_path="/proxy"), True),
        (http("/health"), False),
        (http(CHAT, "OPTIONS"), False),
    ],
)
async def test_guarded_routes_run_in_a_call_of_their_own(scope: Scope, guarded: bool) -> None:
    calls: list[GuardCall | None] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        calls.append(current_call.get())

    await run(app, scope, b'{"user": "ada"}')
    assert [call is not None for call in calls] == [guarded]
    assert current_call.get() is None
    if guarded:
        assert calls[0] is not None
        assert (calls[0].route, calls[0].user) == (CHAT, "ada")


@pytest.mark.parametrize(
    ("body", "caller", "client"),
    [
        (b'{"user": "ada"}', "key 1 (anna)", "ada"),
        (b"{}", "key 1 (anna)", "key 1 (anna)"),
        (b"{}", None, "mine"),
    ],
)
async def test_a_rollout_knows_a_client_by_user_key_or_request(
    body: bytes, caller: str | None, client: str
) -> None:
    calls: list[GuardCall | None] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        calls.append(current_call.get())

    scope = {**http(CHAT), "headers": [(b"x-request-id", b"mine")]}
    await run(app, {**scope, CALLER: caller} if caller else scope, body)
    assert calls[0] is not None
    assert calls[0].client == client


async def test_the_body_reaches_the_application_whole() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message = await receive()
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": (await receive())["type"].encode()})

    sent = await run(app, http(CHAT), b'{"a": 1}')
    assert [message.get("body") for message in sent[1:]] == [b'{"a": 1}', b"http.disconnect"]


@pytest.mark.parametrize("in_background", [False, True])
async def test_a_stored_response_is_fetched_as_the_guard_left_it(in_background: bool) -> None:
    stored = {"id": "resp_1", "model": "m", "status": "completed"}
    calls: list[GuardCall] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        call = current_call.get()
        answer = stored
        if call is not None:
            calls.append(call)
            if in_background:
                answer = {**stored, "status": "queued"}
            else:
                call.output_rulings["req", 0] = BLOCKED
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    middleware = GuardMiddleware(app)
    await run_through(middleware, http("/v1/responses"), b'{"input": "hi"}')
    calls[0].output_rulings["req", 0] = BLOCKED
    fetched = await run_through(middleware, http("/v1/responses/resp_1", "GET"), b"")
    body = json.loads(fetched[-1]["body"])
    assert body["status"] == "incomplete"
    assert body["moderation"]["output"]["action"] == "block"
    other = await run_through(middleware, http("/v1/responses/resp_2", "GET"), b"")
    assert json.loads(other[-1]["body"]) == stored


async def test_a_guard_error_before_the_response_is_rendered() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise StoreUnavailable("gone")

    sent = await run(app, http(CHAT))
    assert sent[0]["status"] == 503
    assert b"store_unavailable" in sent[1]["body"]


def failing(*pieces: bytes, raised: Exception) -> Any:
    """Streams `pieces`, then fails as Starlette reports the guard's failure."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        call = current_call.get()
        assert call is not None
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            call.streaming_started = True
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        call.error = StoreUnavailable("gone")
        raise raised

    return app


STARTED = RuntimeError("Caught handled exception, but response already started.")


async def test_an_error_before_a_streams_first_event_is_a_503() -> None:
    sent = await run(failing(raised=STARTED), http(CHAT))
    assert sent[0]["status"] == 503
    assert b"store_unavailable" in sent[1]["body"]


@pytest.mark.parametrize("raised", [STARTED, StoreUnavailable("gone")])
async def test_a_later_error_is_the_streams_last_event(raised: Exception) -> None:
    sent = await run(failing(b"data: {}\n\n", raised=raised), http(CHAT))
    assert [message.get("more_body") for message in sent[1:]] == [True, False]
    assert b"store_unavailable" in sent[-1]["body"]


async def test_other_exceptions_are_raised_unchanged() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(app, http(CHAT))


@pytest.mark.parametrize("streaming_started", [False, True])
async def test_a_wrong_request_that_vllm_finds_late_is_refused(streaming_started: bool) -> None:
    late = RuntimeError(str(STARTED))
    late.__cause__ = VLLMValidationError("no such grammar")

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        call = current_call.get()
        assert call is not None
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        call.streaming_started = streaming_started
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        raise late

    if streaming_started:
        with pytest.raises(RuntimeError, match="already started"):
            await run(app, http(CHAT))
    else:
        sent = await run(app, http(CHAT))
        assert [message.get("status") for message in sent] == [400, None]
        assert b"no such grammar" in sent[1]["body"]


async def test_one_adapter_answers_a_whole_request_though_another_becomes_active(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make_bench()
    bench.registry.add(*(write_adapter(tmp_path / "adapters", version) for version in (1, 2)))
    bench.registry.way = [1, None]
    await bench.adapters.start()
    headers: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await bench.ask_in_call(current_call.get())
        bench.registry.way = [2, 1, None]
        await bench.adapters.refresh()
        await bench.ask_in_call(current_call.get())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for _ in range(2):
        sent = await run(app, http(CHAT, app=serving(bench.adapters, bench.policy)))
        headers += [value.decode() for name, value in sent[0]["headers"] if name == ADAPTER]
    names = [adapter_name(request.lora_request) for request in bench.engine.requests]
    assert names == ["setback-1"] * 4 + ["setback-2"] * 4
    assert headers == ["setback-1", "setback-2"]
    assert bench.engine.reloads == 0
    assert [lora.lora_name for lora in bench.engine.loras.values()] == ["setback-2"]


async def test_a_request_is_one_span_below_its_callers(
    make_bench: Callable[..., Bench], spans: InMemorySpanExporter
) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.9), policy=BLOCK)
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    caller = [
        (b"traceparent", f"00-{trace_id}-{span_id}-01".encode()),
        (b"x-request-id", b"mine"),
    ]

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await bench.ask_in_call(current_call.get())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await run(app, {**http(CHAT, app=serving(bench.adapters, bench.policy)), "headers": caller})
    ended = {span.name: span for span in spans.get_finished_spans()}
    assert list(ended) == ["draft", "critique", "store", "guard"]
    guard = ended.pop("guard")
    assert guard.attributes == {
        "setback.request_id": "mine",
        "setback.route": CHAT,
        "setback.adapter": "base",
        "setback.action": "block",
    }
    assert guard.parent is not None
    assert format_span_id(guard.parent.span_id) == span_id
    for span in ended.values():
        assert span.context is not None
        assert format_trace_id(span.context.trace_id) == trace_id
        assert span.parent == guard.context


async def test_a_failure_is_recorded_by_its_code_only(spans: InMemorySpanExporter) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise StoreUnavailable("quotes an answer")

    await run(app, http(CHAT))
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "store_unavailable"
    assert "quotes" not in span.to_json()
