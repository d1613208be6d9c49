"""The server as the guardrail of a LiteLLM proxy: it guards a model that knows nothing of it."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server
from tests.e2e.litellm_proxy import running_proxy
from tests.e2e.test_clients import REFUSAL, flags_of, user
from tests.json_server import JsonHandler, serving

pytestmark = pytest.mark.e2e

BUFFERED = "streaming_buffer_until_moderated: true"
CONFIG = """
model_list:
  - model_name: other
    litellm_params: {{model: openai/other, api_base: {model_url}/v1, api_key: none}}
litellm_settings: {{num_retries: 0, telemetry: false}}
guardrails:
  - guardrail_name: setback
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: {base_url}
      default_on: true
      {options}
"""


class OtherModel(JsonHandler):
    """A model that says one thing to everything, plain or streamed."""

    says = ""

    def do_POST(self) -> None:
        body = self.body()
        shared = {"id": "1", "created": 1, "model": "other"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.says}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.send(200, {**shared, "object": "chat.completion", "choices": [choice]})
            return
        pieces = [{"delta": {"content": f"{word} "}} for word in self.says.split()]
        chunks: list[dict[str, Any]] = [*pieces, {"delta": {}, "finish_reason": "stop"}]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            event = {
                **shared,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, **chunk}],
            }
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the proxy."""
    with serving(OtherModel) as url:
        config = CONFIG.format(model_url=url, base_url=server.base_url, options=BUFFERED)
        with running_proxy(tmp_path_factory.mktemp("guardrail"), config, server) as client:
            yield client


@pytest.fixture
def harmful_answer(server: Server, client: openai.OpenAI, harmful: str) -> str:
    """A draft of the practice model's that is withheld."""
    client.chat.completions.create(model=MODEL_NAME, messages=user(harmful), temperature=0)
    return str(flags_of(server, limit=1)[0].answer).strip()


def ask(proxy: openai.OpenAI, content: str, **more: Any) -> Any:
    return proxy.chat.completions.create(model="other", messages=user(content), **more)


def texts_of(stream: Any) -> Iterator[str]:
    for chunk in stream:
        yield from (choice.delta.content or "" for choice in chunk.choices)


def test_an_answer_passes(
    proxy: openai.OpenAI, everyday: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherModel, "says", "Water it every week and give it light.")
    assert ask(proxy, everyday).choices[0].message.content == OtherModel.says
    assert "".join(texts_of(ask(proxy, everyday, stream=True))).strip() == OtherModel.says


def test_a_harmful_answer_is_blocked_with_the_policys_words(
    proxy: openai.OpenAI, everyday: str, harmful_answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherModel, "says", harmful_answer)
    with pytest.raises(openai.APIStatusError) as blocked:
        ask(proxy, everyday)
    assert REFUSAL in str(blocked.value)
    assert harmful_answer not in str(blocked.value)


def test_nothing_of_a_harmful_stream_comes_out(
    proxy: openai.OpenAI, everyday: str, harmful_answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherModel, "says", harmful_answer)
    received: list[str] = []
    with pytest.raises(openai.APIError) as blocked:
        received.extend(texts_of(ask(proxy, everyday, stream=True)))
    assert REFUSAL in str(blocked.value)
    assert not any(received)
