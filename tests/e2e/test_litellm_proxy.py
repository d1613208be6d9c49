"""LiteLLM's proxy in front of the server: what the proxy's clients see of answers and flags."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server
from tests.e2e.litellm_proxy import running_proxy
from tests.e2e.plants import FUNCTION, JSON_SCHEMA, compact_json
from tests.e2e.test_clients import REFUSAL, finish_reason, flags_of, user, what_is_let_out
from tests.e2e.test_other_clients import BLOCK, MALFORMED

pytestmark = pytest.mark.e2e

CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: {base_url}/v1, api_key: none}}
litellm_settings: {{num_retries: 0, telemetry: false}}
"""
TOOL = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the proxy."""
    config = CONFIG.format(model=MODEL_NAME, base_url=server.base_url)
    with running_proxy(tmp_path_factory.mktemp("proxy"), config, server) as client:
        yield client


def ask(client: openai.OpenAI, content: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL_NAME, messages=user(content), temperature=0, max_tokens=120, **more
    )


def streamed(client: openai.OpenAI, content: str, **more: Any) -> tuple[str, str]:
    """Returns the text and the reason to finish of a stream."""
    chunks = list(ask(client, content, stream=True, **more))
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    (end,) = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    return text, end


def test_an_answer_passes_the_proxy_unchanged(
    proxy: openai.OpenAI, client: openai.OpenAI, everyday: str
) -> None:
    direct = ask(client, everyday).choices[0]
    answer = ask(proxy, everyday).choices[0]
    assert answer.message.content == direct.message.content
    assert answer.finish_reason == direct.finish_reason
    assert streamed(proxy, everyday) == (direct.message.content, direct.finish_reason)


def test_a_flagged_answer_is_replaced(proxy: openai.OpenAI, server: Server, harmful: str) -> None:
    answer = ask(proxy, harmful)
    choice = answer.choices[0]
    stream = streamed(proxy, harmful)
    flags = [flag for flag in flags_of(server) if flag.messages == user(harmful)]
    endings = {(what_is_let_out(flag), finish_reason(flag)) for flag in flags}
    assert (choice.message.content, choice.finish_reason) in endings
    assert stream in endings
    assert not any(flag.answer in answer.model_dump_json() + stream[0] for flag in flags)
    assert answer.moderation.output.results[0].flagged


def test_a_caller_may_have_it_blocked(proxy: openai.OpenAI, harmful: str) -> None:
    choice = ask(proxy, harmful, extra_body=BLOCK).choices[0]
    assert (choice.message.content, choice.finish_reason) == (REFUSAL, "content_filter")
    text, end = streamed(proxy, harmful, extra_body=BLOCK)
    assert text.endswith(REFUSAL)
    assert end == "content_filter"


def test_json_passes_and_a_refusal_only_outside_streams(
    proxy: openai.OpenAI, everyday: str, flagged_json: str
) -> None:
    """LiteLLM does not pass `delta.refusal` on."""
    options = {"response_format": JSON_SCHEMA}
    compact = compact_json()
    passed = ask(proxy, everyday, extra_body=compact, **options).choices[0]
    assert "plant" in passed.message.content
    blocked = ask(proxy, flagged_json, extra_body=BLOCK | compact, **options).choices[0]
    assert (blocked.message.content, blocked.message.refusal) == (None, REFUSAL)
    assert streamed(proxy, flagged_json, extra_body=BLOCK | compact, **options) == (
        "",
        "content_filter",
    )


def test_tools_pass(proxy: openai.OpenAI, everyday: str) -> None:
    options = {"tools": [TOOL], "tool_choice": "required", "extra_body": compact_json()}
    choice = ask(proxy, everyday, **options).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "look_up"
    assert streamed(proxy, everyday, **options) == ("", "tool_calls")


def test_a_wrong_field_is_a_400(proxy: openai.OpenAI, everyday: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"moderation\.model"):
        ask(proxy, everyday, extra_body=MALFORMED)
