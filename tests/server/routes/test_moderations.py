"""/v1/moderations refuses conversations that the model's chat template does not accept."""

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
    state.moderator = Moderator(bench.critic, chat_format, bench.policy, ["practice"])
    state.adapters = bench.adapters
    turns = [{"role": role, "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    async with face.client() as client:
        judged = await client.post("/v1/moderations", json={"messages": turns})
    assert judged.status_code == status, judged.text
    if status == 400:
        error = judged.json()["error"]
        assert (error["param"], error["code"]) == ("messages", "invalid_value")
        assert "does not accept these roles" in error["message"]
