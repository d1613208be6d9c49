"""Each family's real tokenizer, chat template and architecture in a real server: every API, plain
and streamed, tools, reasoning on and off, verdicts and an adapter."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from guard.policy_file import load_policy
from refine.stages.dataset import Example, Kind, write_dataset
from refine.stages.train import train
from refine.stages.training import TrainPlan
from tests.adapters import activate, publish
from tests.e2e.refine_access import model_revision
from tests.families.conftest import Served
from tests.families.swaps import wait_for

pytestmark = pytest.mark.e2e

ASKED: list[Any] = [{"role": "user", "content": "How do I bake bread?"}]
MODERATION: Any = {"model": "omni-moderation-latest"}
BLOCK: Any = {**MODERATION, "policy": {"output": {"mode": "block"}}}
REFUSAL = load_policy().refusal
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]


def chat(served: Served, **options: Any) -> Any:
    body = {"messages": ASKED, "temperature": 0, "max_tokens": 24, **options}
    return served.client().chat.completions.create(model=served.family.name, **body)


def thinking(on: bool) -> dict[str, Any]:
    return {"extra_body": {"chat_template_kwargs": {"enable_thinking": on}}}


def test_a_chat_is_answered_and_judged(served: Served) -> None:
    answer = chat(served, extra_body={"moderation": MODERATION})
    (choice,) = answer.choices
    assert choice.finish_reason in ("stop", "length")
    (result,) = answer.moderation.output.results
    assert result.flagged
    assert result.action == "annotate"
    assert result.checked_characters > 0
    scores = result.category_scores
    assert len(scores) == 13
    # Random weights are undecided; a label outside of the labels' tokens would be 0 or 1.
    assert 0.01 < sum(scores.values()) < 0.99


def test_a_stream_is_the_same_answer(served: Served) -> None:
    def words(message: Any) -> str:
        extra = message.model_extra or {}
        return str(extra.get("reasoning") or "") + str(message.content or "")

    plain = chat(served).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(served, stream=True) if chunk.choices]
    assert "".join(words(chunk.delta) for chunk in chunks) == words(plain.message)
    assert chunks[-1].finish_reason == plain.finish_reason


@pytest.mark.parametrize("thinks", [True, False], ids=["reasoning", "no reasoning"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_flagged_answer_is_withheld(served: Served, stream: bool, thinks: bool) -> None:
    """The refusal is in the field where the client expects an answer."""
    options = thinking(thinks)
    options["extra_body"]["moderation"] = BLOCK
    answer = chat(served, stream=stream, **options)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
        content = "".join(chunk.delta.content or "" for chunk in chunks)
        finish = chunks[-1].finish_reason
    else:
        content, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert content == REFUSAL
    assert finish == "content_filter"


def test_tools_are_shown_to_the_model_and_their_results_are_judged(served: Served) -> None:
    if not served.family.options:
        pytest.skip("the family has no tools: neither its template nor vLLM has a form for them")
    without = chat(served).usage.prompt_tokens
    called = chat(served, tools=TOOLS)
    assert called.usage.prompt_tokens > without + 20
    call = {"name": "weather", "arguments": '{"place": "Oslo"}'}
    tool_call = {"id": "call00001", "type": "function", "function": call}
    turns = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "Rain."},
    ]
    answer = chat(served, tools=TOOLS, messages=turns, extra_body={"moderation": MODERATION})
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert answer.moderation.output.results[0].action == "annotate"


def test_reasoning_on_and_off_is_judged_alike(served: Served) -> None:
    """The critic's reply begins after the reasoning; otherwise its labels would have no
    probability."""
    if not served.family.reasons:
        pytest.skip("the family's template knows no reasoning")
    measured = {}
    for on in (True, False):
        options = thinking(on)
        options["extra_body"]["moderation"] = MODERATION
        answer = chat(served, **options)
        (result,) = answer.moderation.output.results
        harm = sum(result.category_scores.values())
        measured[on] = (answer.usage.prompt_tokens, harm)
        assert 0.01 < harm < 0.99
    assert measured[False][0] == measured[True][0] + 4


def test_responses_are_answered_and_streamed(served: Served) -> None:
    client = served.client()
    options: Any = {"model": served.family.name, "input": "How do I bake bread?"}
    options |= {"max_output_tokens": 24, "temperature": 0}
    answer = client.responses.create(**options)
    assert answer.status in ("completed", "incomplete")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    kinds = [event.type for event in client.responses.create(**options, stream=True)]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("system", [None, "Be brief."], ids=["no system", "system"])
def test_messages_are_answered(served: Served, system: str | None) -> None:
    body: dict[str, Any] = {"model": served.family.name, "messages": ASKED, "max_tokens": 24}
    if system:
        body["system"] = system
    with served.server.http() as http:
        answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence")


def test_texts_and_answers_are_moderated(served: Served) -> None:
    body: dict[str, Any] = {"model": served.family.name}
    with served.server.http() as http:
        text = http.post("/v1/moderations", json={**body, "input": "So it goes.", "explain": True})
        turns = [*ASKED, {"role": "assistant", "content": "Knead it."}]
        answer = http.post("/v1/moderations", json={**body, "messages": turns})
    for response in (text, answer):
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        assert 0.01 < sum(result["category_scores"].values()) < 0.99


def harm_of(served: Served) -> tuple[str, float]:
    with served.server.http() as http:
        turns = [*ASKED, {"role": "assistant", "content": "Knead it."}]
        body = {"model": served.family.name, "messages": turns}
        answer = http.post("/v1/moderations", json=body)
    (result,) = answer.json()["results"]
    return answer.headers["x-setback-adapter"], sum(result["category_scores"].values())


def test_an_adapter_is_trained_sealed_loaded_and_told_from_the_base(
    served: Served, tmp_path: Path
) -> None:
    name, before = harm_of(served)
    assert name == "base"
    prompt = ({"role": "user", "content": "How do I bake bread?"},)
    judged = (
        *prompt,
        {"role": "assistant", "content": "Knead it."},
        {"role": "user", "content": "Is the answer above harmful?"},
    )
    examples = [
        Example(Kind.SAFE, prompt, "Knead it."),
        Example(Kind.SAFE_CRITIQUE, judged, "No, it is fine."),
    ]
    dataset = write_dataset(tmp_path / "dataset", examples * 4, {})
    plan = TrainPlan(
        base=str(served.model),
        dataset=str(dataset.path),
        out=str(tmp_path / "adapter"),
        checkpoints=str(tmp_path / "checkpoints"),
        start=None,
        rank=8,
        learning_rate=1e-2,
        epochs=1,
        batch_size=4,
        max_length=256,
        seed=1,
        max_steps=3,
    )
    trained = train(plan)
    url = served.server.database
    revision = asyncio.run(model_revision(served.server))
    version = asyncio.run(publish(url, served.adapters, trained, revision))
    asyncio.run(activate(url, version))
    wait_for(served, f"setback-{version}")
    name, after = harm_of(served)
    assert name == f"setback-{version}"
    assert abs(after - before) > 1e-3
    assert chat(served).choices[0].finish_reason in ("stop", "length")
    asyncio.run(activate(url, None))
    wait_for(served, "base")
    name, again = harm_of(served)
    assert name == "base"
    assert again == pytest.approx(before, abs=1e-4)
