"""/v1/moderations: what it refuses, and that many texts do not crowd out everybody else."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from guard.template import ChatFormat
from server.routes.moderations import Moderator
from tests.scripted import Bench
from tests.server.face import Face

MakeBench = Callable[..., Bench]
STRICT = (
    "{% for turn in messages %}"
    "{% if turn.role not in ('user', 'assistant') %}{{ raise_exception('not you') }}{% endif %}"
    "<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("role", "status"), [("user", 200), ("tool", 400), ("system", 400)])
async def test_roles_that_the_template_refuses_are_the_callers_mistake(
    face: Face, make_bench: MakeBench, tokenizer: Any, role: str, status: int
) -> None:
    bench = make_bench()
    state = face.app.state.setback
    chat_format = ChatFormat(tokenizer, STRICT)
    state.moderator = Moderator(bench.critic, chat_format, ["practice"])
    state.adapters = bench.adapters
    turns = [{"role": role, "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    async with face.client() as client:
        judged = await client.post("/v1/moderations", json={"messages": turns})
    assert judged.status_code == status, judged.text
    if status == 400:
        error = judged.json()["error"]
        assert (error["param"], error["code"]) == ("messages", "invalid_value")
        assert "does not accept these roles" in error["message"]


async def test_thousands_of_texts_are_judged_a_few_at_once(
    face: Face, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    judging = most = 0
    judge = bench.critic.judge

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal judging, most
        judging += 1
        most = max(most, judging)
        await asyncio.sleep(0)
        verdict = await judge(*arguments, **options)
        judging -= 1
        return verdict

    monkeypatch.setattr(bench.critic, "judge", counted)
    state = face.app.state.setback
    state.moderator = Moderator(bench.critic, bench.chat_format, ["practice"])
    state.adapters = bench.adapters
    async with face.client() as client:
        judged = await client.post("/v1/moderations", json={"input": ["Hello."] * 500})
    assert len(judged.json()["results"]) == 500
    assert 1 < most <= 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": 3}, "input: Input should be a valid string or a valid list"),
        ({"input": []}, "input: List should have at least 1 item"),
        ({"input": "a", "explain": 3}, "explain: Input should be a valid boolean"),
    ],
)
async def test_a_wrong_field_is_told_all_that_it_may_be(
    face: Face, make_bench: MakeBench, body: dict[str, Any], message: str
) -> None:
    bench = make_bench()
    face.app.state.setback.moderator = Moderator(bench.critic, bench.chat_format, ["practice"])
    async with face.client() as client:
        refused = await client.post("/v1/moderations", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(message)
