"""The refine routes over the scripted engine: the requests to the engine, and refusals."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from guard import prompts
from guard.adapters import adapter_name
from guard.critic import Critic
from guard.errors import GuardError, TemplateUnusable
from guard.scripted import Script
from server.errors import BadRequest, on_bad_request, on_guard_error
from server.routes import model_access as refine_routes
from server.routes.model_access import TOKEN_HEADER, ModelAccess
from tests.adapters import write_adapter
from tests.scripted import Bench

REQUEST = [{"role": "user", "content": "Tell me."}]
ANSWERED = [*REQUEST, {"role": "assistant", "content": "First, you wait."}]
HARMFUL = Script(answers=lambda prompt: ("No flag.",), harm=lambda prompt: 0.9)


@pytest.fixture
def bench(make_bench: Callable[..., Bench], tmp_path: Path) -> Bench:
    """Everything would be flagged; adapter 1 is registered, not active."""
    created: Bench = make_bench(replace(HARMFUL))
    created.registry.add(write_adapter(tmp_path / "adapters", 1))
    return created


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends the token."""
    critic = Critic(
        bench.engine, bench.engine.tokenizer, bench.chat_format, max_model_len=1024, timeout_s=5
    )
    info = {"model": "practice", "max_model_len": 1024}
    model_access = ModelAccess(
        bench.engine, critic, bench.chat_format, bench.adapters, "secret", info
    )
    app = FastAPI()
    app.include_router(refine_routes.router)
    app.add_exception_handler(GuardError, on_guard_error)
    app.add_exception_handler(BadRequest, on_bad_request)
    app.state.setback = SimpleNamespace(model_access=model_access)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test/v1/guard/refine",
        headers={TOKEN_HEADER: "secret"},
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_answers_are_unguarded_and_at_the_lowest_priority(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    response = await post(
        client, "/answers", adapter=1, conversations=[REQUEST] * 3, max_tokens=9, seed=5
    )
    assert response == {"adapter": "setback-1", "answers": ["No flag."] * 3}
    assert bench.store.flags == []
    assert [what for what, _ in bench.engine.log] == ["draft"] * 3
    assert {adapter_name(request.lora_request) for request in bench.engine.requests} == {
        "setback-1"
    }
    assert min(request.priority for request in bench.engine.requests) > 1000
    assert [request.params.seed for request in bench.engine.requests] == [5, 6, 7]
    assert {request.params.max_tokens for request in bench.engine.requests} == {9}


async def test_the_reminder_is_put_as_the_guard_puts_it(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    for reminder in (True, False):
        await post(
            client,
            "/answers",
            adapter="base",
            conversations=[REQUEST],
            max_tokens=9,
            reminder=reminder,
        )
    (_, guided), (_, plain) = bench.engine.log
    assert guided == f"<|im_start|>system\n{prompts.REMINDER}<|im_end|>\n{plain}"


async def test_lengths_are_counted_and_null_where_the_template_refuses(
    bench: Bench, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = bench.chat_format.conversation

    def strict(messages: list[dict[str, str]]) -> list[int]:
        if messages[-1]["role"] == "narrator":
            raise TemplateUnusable("roles must alternate")
        return usual(messages)

    monkeypatch.setattr(bench.chat_format, "conversation", strict)
    odd = [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}]
    response = await post(client, "/lengths", conversations=[REQUEST, ANSWERED, odd])
    assert response["lengths"] == [len(usual(REQUEST)), len(usual(ANSWERED)), None]


async def test_an_answer_is_cut_to_the_context(bench: Bench, client: httpx.AsyncClient) -> None:
    await post(client, "/answers", adapter="base", conversations=[REQUEST], max_tokens=5000)
    prompt_ids = bench.chat_format.conversation(REQUEST)
    assert bench.engine.requests[0].params.max_tokens == 1024 - len(prompt_ids)


@pytest.mark.parametrize(
    ("categories", "asked"),
    [
        (False, [prompts.CRITIQUE.format(subject="answer")]),
        (True, [q.format(subject="answer") for q in (prompts.CRITIQUE, prompts.CATEGORY)]),
    ],
)
async def test_verdicts_ask_the_question_that_is_meant(
    bench: Bench, client: httpx.AsyncClient, categories: bool, asked: list[str]
) -> None:
    response = await post(
        client,
        "/verdicts",
        adapter="active",
        conversations=[ANSWERED],
        categories=categories,
    )
    (verdict,) = response["verdicts"]
    assert verdict["harm"] == pytest.approx(0.9)
    assert (verdict["category_scores"] is not None) == categories
    assert len(bench.engine.log) == len(asked)
    for (what, text), words in zip(bench.engine.log, asked, strict=True):
        assert what == "read"
        assert "First, you wait." in text
        assert words in text


async def test_texts_are_judged_as_texts(bench: Bench, client: httpx.AsyncClient) -> None:
    response = await post(client, "/verdicts", adapter="base", texts=["One.", "Two."])
    assert [verdict["harm"] for verdict in response["verdicts"]] == pytest.approx([0.9, 0.9])
    assert all(prompts.CRITIQUE.format(subject="text") in text for _, text in bench.engine.log)


@pytest.mark.parametrize("path", ["/answers", "/verdicts"])
async def test_a_failure_midway_is_raised_as_one_error(
    bench: Bench, client: httpx.AsyncClient, path: str
) -> None:
    long = [{"role": "user", "content": "word " * 3000}, *ANSWERED[1:]]
    body: dict[str, Any] = {"adapter": 1, "conversations": [ANSWERED, long]}
    if path == "/answers":
        body = {"adapter": 1, "conversations": [REQUEST, long[:1]], "max_tokens": 1}
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "conversations.1"
    assert bench.engine.log == []


async def test_a_failing_critic_is_reported(bench: Bench, client: httpx.AsyncClient) -> None:
    bench.engine.script.fail_critique = RuntimeError("scripted")
    response = await client.post("/verdicts", json={"adapter": "base", "texts": ["One.", "Two."]})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "critic_unavailable"


async def test_conversations_without_a_final_answer_are_refused(client: httpx.AsyncClient) -> None:
    for conversation in (REQUEST, ANSWERED[1:]):
        response = await client.post(
            "/verdicts", json={"adapter": "base", "conversations": [conversation]}
        )
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "conversations.0"


async def test_the_active_adapter_is_reported_and_not_unloaded(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    assert (await client.get("/model")).json()["active"] is None
    bench.registry.way = [1, None]
    await bench.adapters.refresh()
    assert (await client.get("/model")).json()["active"] == 1
    assert (await client.delete("/adapters/1")).status_code == 409
    assert (await client.delete("/adapters/8")).status_code == 404
    bench.registry.way = [None]
    await bench.adapters.refresh()
    assert (await client.delete("/adapters/1")).status_code == 204


async def test_without_the_token_the_model_is_not_accessible(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    body = {"adapter": "base", "conversations": [REQUEST], "max_tokens": 1}
    for token in ("", "Secret", "secret "):
        response = await client.post("/answers", json=body, headers={TOKEN_HEADER: f"{token}x"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_refine_token"
    assert bench.engine.log == []


POLICY = """
[[criteria]]
name = "doses"
description = "It names a dose."

[[criteria]]
name = "flags"
words = ["flag"]
applies_to = ["output"]

[policies.kids]
[[policies.kids.criteria]]
name = "asks"
description = "It asks for a dose."
applies_to = ["input"]
"""


async def test_the_criteria_of_a_policy_that_is_not_in_force_are_read(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    sent = {"adapter": "base", "policy": POLICY, "policy_name": "kids"}
    answered = await post(client, "/verdicts", conversations=[ANSWERED], **sent)
    texts = await post(client, "/verdicts", texts=["A flag."], **sent)
    assert answered["verdicts"][0]["criteria"] == {"doses": pytest.approx(0.9), "flags": 0.0}
    assert texts["verdicts"][0]["criteria"] == {
        "asks": pytest.approx(0.9),
        "doses": pytest.approx(0.9),
        "flags": 1.0,
    }
    assert min(request.priority for request in bench.engine.requests) > 1000


@pytest.mark.parametrize(
    ("sent", "param", "message"),
    [
        ({"policy": "[default]\nthreshold = 5"}, "policy", "policy: line 2: default.threshold"),
        ({"policy": "no toml"}, "policy", "not a TOML file"),
        ({"policy": POLICY, "policy_name": "x"}, "policy_name", "use one of default, kids"),
        ({"policy": " " * 200_001}, "policy", "at most 200000 characters"),
    ],
)
async def test_a_wrong_policy_is_a_clear_error(
    client: httpx.AsyncClient, sent: dict[str, str], param: str, message: str
) -> None:
    body = {"adapter": "base", "texts": ["One."], **sent}
    response = await client.post("/verdicts", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


async def test_a_text_leaves_room_for_a_long_question(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    question = "Does it name a dose? " * 40
    policy = f'[[criteria]]\nname = "doses"\nquestion = "{question}"'
    reply = await post(client, "/verdicts", adapter="base", texts=["word " * 900], policy=policy)
    assert reply["verdicts"][0]["criteria"] == {"doses": pytest.approx(0.9)}
