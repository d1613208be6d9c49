"""What a policy masks in requests: model, critic and flags get placeholders, on every route."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from guard.call import GuardCall, current_call
from guard.errors import InputBlocked
from guard.policy import Policy
from guard.policy_file import parse_policies
from guard.scripted import Script
from server.errors import BadRequest
from server.guarded.masked_request import MaskedRequest, masked_request
from tests.scripted import Bench
from tests.server.guarded.test_middleware import http, run, serving

MakeBench = Callable[..., Bench]
POLICY = """
[default]
action = "block"

[[criteria]]
name = "bluebird"
words = ["Bluebird"]
applies_to = ["input"]
action = "mask"

[[criteria]]
name = "addresses"
personal_data = ["EMAIL_ADDRESS"]
applies_to = ["input", "output"]
action = "mask"

[[criteria]]
name = "rivals"
words = ["Bakers"]
applies_to = ["input"]
action = "annotate"
"""
SAID = "Tell ann@example.org of Bluebird."
MASKED = "Tell <EMAIL_ADDRESS> of <bluebird>."


def policy(text: str = POLICY) -> Policy:
    return parse_policies(text, "policy").default


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(arguments: str) -> dict[str, Any]:
    function = {"name": "bluebird", "arguments": arguments}
    return {"id": "1", "type": "function", "function": function}


@pytest.mark.parametrize(
    ("body", "masked"),
    [
        ({"messages": [user(SAID)]}, {"messages": [user(MASKED)]}),
        (
            {"messages": [user([{"type": "text", "text": SAID}, SAID])]},
            {"messages": [user([{"type": "text", "text": MASKED}, MASKED])]},
        ),
        (
            {"messages": [{"role": role, "content": SAID} for role in ("system", "tool")]},
            {"messages": [{"role": role, "content": MASKED} for role in ("system", "tool")]},
        ),
        (
            {"messages": [user([{"type": "image_url", "image_url": {"url": "data:Bluebird"}}])]},
            None,
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [called('{"to": ["a@b.org", 3]}')]}]},
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [called('{"to": ["<EMAIL_ADDRESS>", 3]}')],
                    }
                ]
            },
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [called("mail a@b.org")]}]},
            {"messages": [{"role": "assistant", "tool_calls": [called("mail <EMAIL_ADDRESS>")]}]},
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [called('{"a":  "\\ud800"}')]}]},
            None,
        ),
        (
            {"messages": [[user(SAID)], [user("Hi.")]]},
            {"messages": [[user(MASKED)], [user("Hi.")]]},
        ),
        ({"documents": [{"name": SAID}]}, {"documents": [{"name": MASKED}]}),
        ({"prompt": SAID}, {"prompt": MASKED}),
        ({"prompt": ["Hi.", SAID]}, {"prompt": ["Hi.", MASKED]}),
        ({"input": SAID, "instructions": SAID}, {"input": MASKED, "instructions": MASKED}),
        (
            {"input": [{"type": "function_call_output", "call_id": "Bluebird", "output": SAID}]},
            {"input": [{"type": "function_call_output", "call_id": "Bluebird", "output": MASKED}]},
        ),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": '{"a": "Bluebird"}'}]},
            {"input": [{"type": "function_call", "name": "f", "arguments": '{"a": "<bluebird>"}'}]},
        ),
        (
            {"input": [{"type": "reasoning", "summary": [{"text": SAID}]}]},
            {"input": [{"type": "reasoning", "summary": [{"text": MASKED}]}]},
        ),
        (
            {"system": [{"type": "text", "text": SAID}], "messages": [user("Hi.")]},
            {"system": [{"type": "text", "text": MASKED}], "messages": [user("Hi.")]},
        ),
        (
            {"messages": [user([{"type": "tool_result", "content": [{"text": SAID}]}])]},
            {"messages": [user([{"type": "tool_result", "content": [{"text": MASKED}]}])]},
        ),
        (
            {"messages": [user([{"type": "tool_use", "name": "f", "input": {"q": [SAID]}}])]},
            {"messages": [user([{"type": "tool_use", "name": "f", "input": {"q": [MASKED]}}])]},
        ),
        (
            {"messages": [user([{"title": SAID, "source": {"type": "text", "data": SAID}}])]},
            {"messages": [user([{"title": MASKED, "source": {"type": "text", "data": MASKED}}])]},
        ),
        ({"messages": [user([{"source": {"type": "base64", "data": "Bluebird"}}])]}, None),
        ({"messages": [user("Hi.")], "model": "Bluebird", "user": "a@b.org"}, None),
        ({"messages": 3, "prompt": None, "input": [None, 3]}, None),
    ],
)
async def test_the_texts_that_the_model_reads_are_masked(
    body: dict[str, Any], masked: dict[str, Any] | None
) -> None:
    request = await masked_request(body, policy())
    assert request.content == (body if masked is None else masked)
    assert bool(request.names) is (masked is not None)


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]], ["text", 3]])
async def test_token_ids_are_refused(prompt: list[Any]) -> None:
    with pytest.raises(BadRequest, match="prompt: .*send the prompt as text") as refused:
        await masked_request({"prompt": prompt}, policy())
    assert (refused.value.status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize("text", ["", f"shadow = true\n{POLICY}"])
async def test_a_policy_that_masks_no_input_takes_everything(text: str) -> None:
    body = {"prompt": [1, 2], "messages": [user(SAID)]}
    assert await masked_request(body, policy(text)) == MaskedRequest(body)


async def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    nested: Any = SAID
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(BadRequest, match="nested"):
        await masked_request({"input": nested}, policy())


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [user(SAID)]},
    "/v1/completions": {"prompt": SAID},
    "/v1/responses": {"input": [user([{"type": "input_text", "text": SAID}])]},
    "/v1/messages": {"messages": [user([{"type": "text", "text": SAID}])]},
}


class Application:
    """Answers as the scripted engine does, and records what it received."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.raw = b""
        self.body: dict[str, Any] = {}
        self.call: GuardCall | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.raw = (await receive())["body"]
        assert dict(scope["headers"])[b"content-length"] == str(len(self.raw)).encode()
        self.body, self.call = json.loads(self.raw), current_call.get()
        await self._bench.ask_in_call(self.call)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        answer = {"model": "m", "choices": []}
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def ask(bench: Bench, route: str, body: dict[str, Any]) -> tuple[Application, Any]:
    """Returns what the application got, and the response."""
    values = {"model": "m", "temperature": 0.5, "stop": [SAID], **body}
    return await send(bench, route, json.dumps(values).encode())


async def send(bench: Bench, route: str, raw: bytes) -> tuple[Application, Any]:
    app = Application(bench)
    scope = http(route, app=serving(bench.adapters, bench.policy))
    scope["app"].state.openai_serving_models = SimpleNamespace(base_model_paths=[])
    scope["headers"] = [(b"content-length", str(len(raw)).encode())]
    sent = await run(app, scope, raw)
    return app, json.loads(sent[-1]["body"])


@pytest.mark.parametrize("route", ROUTES)
async def test_on_every_route_the_model_and_the_flag_get_the_masked_text(
    make_bench: MakeBench, route: str
) -> None:
    bench = make_bench(Script(harm=lambda _: 0.9), policy=POLICY)
    app, _ = await ask(bench, route, ROUTES[route])
    assert "ann@" not in json.dumps(app.body | {"stop": []})
    assert MASKED in json.dumps(app.body)
    assert (app.body["temperature"], app.body["stop"]) == (0.5, [SAID])
    (flag,) = bench.store.flags
    assert [message["content"] for message in flag.messages or ()] == [MASKED]


@pytest.mark.parametrize("wants_scores", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
async def test_the_response_says_that_something_was_masked(
    make_bench: MakeBench, route: str, wants_scores: bool
) -> None:
    bench = make_bench(Script(), policy=POLICY)
    asks = {"moderation": {"model": "omni-moderation-latest"}} if wants_scores else {}
    _, answer = await ask(bench, route, ROUTES[route] | asks)
    moderation = answer["moderation"]["input"]
    (moderation,) = moderation.get("results", [moderation])
    assert (moderation["flagged"], moderation["action"]) == (True, "mask")
    assert moderation["categories"]["bluebird"] is moderation["categories"]["addresses"] is True
    assert ("rivals" in moderation["categories"]) is wants_scores
    assert any("Text:" in text for _, text in bench.engine.log) is wants_scores


async def test_a_request_with_nothing_to_mask_arrives_byte_for_byte(make_bench: MakeBench) -> None:
    bench = make_bench(Script(), policy=POLICY)
    body = b'{"messages" : [{"role":"user","content":"Caf\\u00e9"}],"stream":false, "top_p":1e-1}'
    app, answer = await send(bench, "/v1/chat/completions", body)
    assert app.raw == body
    assert app.call is not None
    assert not app.call.masked_input
    assert "moderation" not in answer


async def test_what_is_masked_does_not_block_a_request_and_the_rest_may(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(Script(), policy=POLICY, block_input=True)
    _, answer = await ask(bench, "/v1/chat/completions", {"messages": [user(SAID)]})
    assert answer["moderation"]["input"]["results"][0]["action"] == "mask"
    bench.call = GuardCall(route="", open_turn=f"{MASKED} And Bakers.", policy=bench.policy)
    with pytest.raises(InputBlocked):
        await bench.ask()
