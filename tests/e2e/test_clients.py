"""What OpenAI's and Anthropic's clients receive from a guarded server, plain and streamed."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from guard.criteria import Place
from guard.policy_file import load_policy
from guard.store.flags import StoredFlag
from guard.store.review import Filter, ReviewStore
from refine.practice.integrity import MODEL_NAME
from refine.practice.recipe import MODEL_DIR
from tests.e2e.conftest import SETBACK, Server

pytestmark = pytest.mark.e2e

REFUSAL = load_policy().refusal
MODERATION: Any = {"model": "omni-moderation-latest"}


def flags_of(server: Server, limit: int = 1000) -> list[StoredFlag]:
    async def read() -> list[StoredFlag]:
        store = ReviewStore(server.database)
        try:
            return await store.page(Filter(place=Place.OUTPUT), limit)
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.fixture
def one_more_flag(server: Server) -> Iterator[Callable[[], StoredFlag]]:
    """Yields the one flag that the test's request must leave."""
    before = {flag.id for flag in flags_of(server)}

    def newest() -> StoredFlag:
        (flag,) = [flag for flag in flags_of(server) if flag.id not in before]
        return flag

    yield newest
    newest()


def what_is_let_out(flag: StoredFlag) -> str:
    """Returns what was released before the flag, and the replacement."""
    shown, instead = flag.answer[: flag.released_chars], flag.revision or REFUSAL
    return f"{shown}\n\n{instead}" if shown else instead


def user(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


def finish_reason(flag: StoredFlag) -> str:
    """What a flagged answer ends with: a revision in its place is an answer like any other."""
    return "stop" if flag.revision and not flag.released_chars else "content_filter"


def as_prompt(content: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return str(
        tokenizer.apply_chat_template(user(content), tokenize=False, add_generation_prompt=True)
    )


def test_an_everyday_request_is_answered(client: openai.OpenAI, everyday: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL_NAME, messages=user(everyday), temperature=0
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert REFUSAL not in answer.choices[0].message.content
    assert answer.moderation is None
    assert raw.headers["x-setback-adapter"] == "base"


def test_a_harmful_one_is_withheld_in_chat(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL_NAME, messages=user(harmful), temperature=0, user="ada"
    )
    answer = raw.parse()
    choice = answer.choices[0]
    assert answer.moderation is not None
    assert answer.moderation.output.type == "moderation_results"
    assert answer.moderation.output.results[0].flagged
    flag = one_more_flag()
    assert choice.message.content == what_is_let_out(flag)
    assert choice.finish_reason == finish_reason(flag)
    assert answer.id == flag.request_id
    assert raw.headers["x-request-id"] in flag.request_id
    assert flag.messages == user(harmful)
    assert flag.answer
    assert flag.answer not in raw.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert flag.user_hash
    assert flag.adapter == raw.headers["x-setback-adapter"] == "base"


def test_in_a_chat_stream(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    stream = client.chat.completions.create(
        model=MODEL_NAME, messages=user(harmful), temperature=0, stream=True
    )
    chunks = list(stream)
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    ends = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    moderated = [chunk.moderation for chunk in chunks if chunk.moderation]
    flag = one_more_flag()
    assert text == what_is_let_out(flag)
    assert flag.answer not in text
    assert ends == [finish_reason(flag)]
    assert len(moderated) == 1


def test_a_stream_flows_from_its_first_window_on(client: openai.OpenAI, everyday: str) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=MODEL_NAME,
        messages=user(everyday),
        temperature=0,
        max_tokens=160,
        stream=True,
        stream_options=options,
        extra_body={"ignore_eos": True},
    )
    written = [
        chunk.usage.completion_tokens
        for chunk in stream
        if chunk.usage and any(choice.delta.content for choice in chunk.choices)
    ]
    assert written[0] == 32
    assert len(written) > 1


def test_in_a_completion(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    answer = client.completions.create(
        model=MODEL_NAME, prompt=as_prompt(harmful), temperature=0, max_tokens=128
    )
    flag = one_more_flag()
    assert answer.choices[0].finish_reason == finish_reason(flag)
    assert answer.choices[0].text == what_is_let_out(flag)
    assert flag.route == "/v1/completions"


def test_in_a_completion_stream(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    stream = client.completions.create(
        model=MODEL_NAME, prompt=as_prompt(harmful), temperature=0, max_tokens=128, stream=True
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    flag = one_more_flag()
    assert text == what_is_let_out(flag)
    assert flag.answer not in text
    assert chunks[-1].choices[0].finish_reason == finish_reason(flag)


def test_in_a_response(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    answer = client.responses.create(model=MODEL_NAME, input=harmful, temperature=0)
    flag = one_more_flag()
    assert answer.status == ("completed" if flag.revision else "incomplete")
    assert bool(answer.incomplete_details) == (not flag.revision)
    assert answer.output_text == what_is_let_out(flag)
    assert answer.moderation is not None
    assert answer.moderation.output.type == "moderation_result"
    assert answer.moderation.output.flagged
    assert flag.messages == user(harmful)


def test_in_a_response_stream(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    stream = client.responses.create(model=MODEL_NAME, input=harmful, temperature=0, stream=True)
    events = list(stream)
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    flag = one_more_flag()
    assert text == what_is_let_out(flag)
    assert flag.answer not in str(events)
    ended = {"stop": "completed", "content_filter": "incomplete"}
    assert events[-1].type == f"response.{ended[finish_reason(flag)]}"


@pytest.mark.parametrize("stream", [False, True])
def test_in_a_message(
    server: Server, harmful: str, stream: bool, one_more_flag: Callable[[], StoredFlag]
) -> None:
    body = {"model": MODEL_NAME, "max_tokens": 128, "temperature": 0, "stream": stream}
    with server.http() as http:
        answer = http.post("/v1/messages", json=body | {"messages": user(harmful)})
    assert answer.status_code == 200
    flag = one_more_flag()
    assert (flag.revision or REFUSAL)[-20:] in answer.text
    assert ('"refusal"' in answer.text) == (finish_reason(flag) == "content_filter")
    assert flag.answer not in answer.text
    assert answer.headers["x-setback-adapter"] == "base"


def test_a_caller_may_have_it_blocked_instead_of_revised(
    client: openai.OpenAI, harmful: str, one_more_flag: Callable[[], StoredFlag]
) -> None:
    moderation: Any = {**MODERATION, "policy": {"output": {"mode": "block"}}}
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=user(harmful), temperature=0, moderation=moderation
    )
    flag = one_more_flag()
    assert flag.revision is None
    assert answer.choices[0].message.content == what_is_let_out(flag)
    assert answer.choices[0].finish_reason == "content_filter"


def test_scores_of_input_and_output_when_asked_for(client: openai.OpenAI, everyday: str) -> None:
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=user(everyday), temperature=0, moderation=MODERATION
    )
    assert answer.moderation is not None
    for side in (answer.moderation.input, answer.moderation.output):
        assert side.type == "moderation_results"
        assert not side.results[0].flagged
        assert len(side.results[0].category_scores) == 13


def test_flagged_input_is_a_400_when_the_caller_asks(
    server: Server, client: openai.OpenAI, harmful: str
) -> None:
    policy = {"input": {"mode": "block"}}
    moderation: Any = {**MODERATION, "policy": policy}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL_NAME, messages=user(harmful), temperature=0, moderation=moderation
        )
    assert (caught.value.code, caught.value.param) == ("content_filter", "prompt")
    with server.http() as http:
        (flag,) = http.get("/v1/guard/flags", params={"place": "input", "limit": 1}).json()["data"]
    assert (flag["action"], flag["messages"], flag["answer"]) == ("block", user(harmful), "")


def test_moderations_parse(client: openai.OpenAI, everyday: str, harmful: str) -> None:
    answer = client.moderations.create(input=[everyday, harmful])
    assert len(answer.results) == 2
    assert [result.flagged for result in answer.results] == [False, True]
    scores = answer.results[1].category_scores.model_dump(by_alias=True)
    assert len(scores) == 13
    assert all(0 <= score <= 1 for score in scores.values())


def test_moderations_judge_an_answer_in_its_conversation_and_explain(
    server: Server, harmful: str
) -> None:
    refused = [
        *user(harmful),
        {"role": "assistant", "content": "I must decline. It is against the law."},
    ]
    with server.http() as http:
        answer = http.post("/v1/moderations", json={"messages": refused, "explain": True})
    (result,) = answer.json()["results"]
    assert not result["flagged"]
    assert result["analysis"]


def test_the_flags_command_prints_what_was_flagged(
    server: Server, client: openai.OpenAI, harmful: str
) -> None:
    answer = client.chat.completions.create(model=MODEL_NAME, messages=user(harmful), temperature=0)
    command = [SETBACK, "flags", "list", "--request-id", answer.id, "--json"]
    url = server.database.render_as_string(hide_password=False)
    listed = subprocess.run(
        command, env={"DATABASE_URL": url}, capture_output=True, check=True, text=True
    )
    (flag,) = json.loads(listed.stdout)
    assert flag["messages"] == user(harmful)
