"""Criteria for texts that no model reads: lengths, languages, masked requests, and what LiteLLM
holds back for them."""

from pathlib import Path
from typing import Any

import openai
import pytest

from refine.practice.integrity import MODEL_NAME
from tests.e2e.litellm_proxy import running_proxy
from tests.e2e.policies.conftest import EVERYDAY, Tenants
from tests.e2e.test_litellm_guardrail import CONFIG, OtherModel, ask, texts_of
from tests.json_server import serving

pytestmark = pytest.mark.e2e


def streamed(tenants: Tenants, key: str, content: str) -> str:
    """Returns all text of a streamed answer."""
    with tenants.client(key) as client:
        chunks = client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            stream=True,
        )
        return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices)


def test_an_answer_that_is_too_long_is_withheld(tenants: Tenants) -> None:
    answer = tenants.said("plain", EVERYDAY)
    assert len(answer) > 40
    assert tenants.said("short", EVERYDAY) == "Too long."
    shown = streamed(tenants, "short", EVERYDAY).removesuffix("Too long.").removesuffix("\n\n")
    assert answer.startswith(shown)
    assert len(shown) <= 40
    assert tenants.newest_flag().categories == ("long",)


def test_an_answer_in_another_language_is_withheld(tenants: Tenants) -> None:
    assert tenants.said("german", EVERYDAY) == "Nur Deutsch."
    assert streamed(tenants, "german", EVERYDAY) == "Nur Deutsch."
    assert tenants.newest_flag().categories == ("other-languages",)


UNMASKED = "How do I water a red rose for ann@example.org?"
MASKED = "How do I water a <flowers> for <EMAIL_ADDRESS>?"


def test_a_request_is_masked_before_the_model_reads_it(tenants: Tenants) -> None:
    with tenants.client("masking") as client:
        turn: Any = [{"role": "user", "content": UNMASKED}]
        chat: Any = client.chat.completions.create(model=MODEL_NAME, messages=turn)
        (told,) = chat.moderation.input.results
        assert (told.action, told.categories["flowers"]) == ("mask", True)
        assert tenants.newest_flag().messages == [{"role": "user", "content": MASKED}]
        response: Any = client.responses.create(model=MODEL_NAME, input=UNMASKED)
        assert response.moderation.input.action == "mask"
        completion = client.completions.create(model=MODEL_NAME, prompt=UNMASKED, echo=True)
        assert completion.choices[0].text.startswith(MASKED)
        with pytest.raises(openai.BadRequestError, match="send the prompt as text") as refused:
            client.completions.create(model=MODEL_NAME, prompt=[1, 2, 3])
        assert refused.value.param == "prompt"
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": UNMASKED}]}]
    with tenants.caller("message", "masking") as client:
        client.messages.create(model=MODEL_NAME, messages=parts, max_tokens=40, system=UNMASKED)
    flag = tenants.newest_flag()
    assert [message["content"] for message in flag.messages or ()] == [MASKED, MASKED]


@pytest.mark.full
def test_litellm_holds_back_the_beginning_of_a_word(
    tenants: Tenants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "streaming_transform_mode": "incremental_diff",
        "streaming_sampling_rate": "1",
        "api_key": tenants.keys["plain"],
    }
    lines = "\n      ".join(f"{name}: {value}" for name, value in options.items())
    monkeypatch.setattr(OtherModel, "says", "The roses are in the shade. We name it Project Heron.")
    received: list[str] = []
    with serving(OtherModel) as url:
        config = CONFIG.format(model_url=url, base_url=tenants.server.base_url, options=lines)
        with (
            running_proxy(tmp_path, config, tenants.server) as proxy,
            pytest.raises(openai.APIError, match="Not here"),
        ):
            received.extend(texts_of(ask(proxy, EVERYDAY, stream=True)))
    assert "".join(received).startswith("The roses are")
    assert "Project" not in "".join(received)
