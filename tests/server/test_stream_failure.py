"""The guard fails during a stream: from the guarded engine through vLLM's own stream generators and
routes to what the openai and anthropic packages receive."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from vllm.entrypoints.anthropic import api_router as messages_api
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion import api_router as chat_api
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import api_router as completions_api
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses import api_router as responses_api
from vllm.entrypoints.openai.responses.context import SimpleContext
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.call import StreamMode
from guard.errors import GuardError
from guard.policies import Policies, PolicySet
from guard.scripted import Script
from server.errors import on_guard_error
from server.guarded.middleware import GuardMiddleware
from tests.scripted import Bench

START = "To open the door, do this. First walk up to the old door in the wall."
LATE = " Then take the forbidden key and break the quiet lock of the hidden room."
Event = dict[str, Any]
MakeBench = Callable[..., Bench]
Failing = Callable[[MakeBench, StreamMode], Bench]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
URL = "http://setback"
QUESTION = [{"role": "user", "content": "How?"}]
ROUTES: dict[str, Event] = {
    CHAT: {"messages": QUESTION},
    COMPLETIONS: {"prompt": "How?"},
    RESPONSES: {"input": "How?", "store": False},
    MESSAGES: {"messages": QUESTION, "max_tokens": 99},
}
ANNOTATE_ALL = '[default]\nthreshold = 0.0\naction = "annotate"\n'


def unstarted(handler: Any, **attributes: Any) -> Any:
    """Returns one of vLLM's handlers, without an engine and a model."""
    instance = handler.__new__(handler)
    off = ("force_include_usage", "log_outputs", "prompt_tokens_details", "per_request_metrics")
    vars(instance).update(
        {f"enable_{name}": False for name in off}, request_logger=None, **attributes
    )
    return instance


def outputs_of(bench: Bench) -> AsyncGenerator[RequestOutput, None]:
    """Yields the answer to one streamed request, as each handler gets it from its engine."""
    conversation = bench.chat_format.conversation(QUESTION)
    prompt = {"type": "token", "prompt_token_ids": conversation}
    params = SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=None)
    return bench.guarded.generate(prompt, params, "req-1")


@dataclass(frozen=True)
class Handlers:
    """Provides handlers to vLLM's routes; all streams are made by vLLM's own code."""

    bench: Bench

    async def create_chat_completion(self, request: Any, _raw: Any) -> Any:
        chat = unstarted(
            OpenAIServingChat,
            parser_cls=None,
            system_fingerprint=None,
            response_role="assistant",
            _include_reasoning_tokens_details=False,
        )
        return chat.chat_completion_stream_generator(
            request, outputs_of(self.bench), "req-1", "m", [], None, SimpleNamespace()
        )

    async def create_completion(self, request: Any, _raw: Any) -> Any:
        outputs = ((0, output) async for output in outputs_of(self.bench))
        completion = unstarted(
            OpenAIServingCompletion,
            system_fingerprint=None,
            _extract_prompt_text=lambda prompt: prompt,
        )
        return completion.completion_stream_generator(
            request, ["How?"], outputs, "req-1", 1, "m", 1, None, SimpleNamespace()
        )

    async def create_responses(self, request: Any, _raw: Any) -> Any:
        context = SimpleContext()

        async def contexts() -> AsyncIterator[SimpleContext]:
            async for output in outputs_of(self.bench):
                context.append_output(output)
                yield context

        responses = unstarted(OpenAIServingResponses, parser=None, use_harmony=False)
        return responses.responses_stream_generator(
            request, SamplingParams(), contexts(), context, "m", None, SimpleNamespace()
        )

    async def create_messages(self, _request: Any, raw: Any) -> Any:
        body = {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
        request = ChatCompletionRequest.model_validate(body)
        chunks = await self.create_chat_completion(request, raw)
        return unstarted(AnthropicServingMessages).message_stream_converter(chunks)


def serving(bench: Bench) -> httpx2.AsyncClient:
    """A client of vLLM's routes with our parts around them, assembled as in the server."""
    app = FastAPI()
    for api in (chat_api, completions_api, responses_api, messages_api):
        app.include_router(api.router)
    app.state.openai_serving_chat = app.state.openai_serving_completion = Handlers(bench)
    app.state.openai_serving_responses = app.state.anthropic_serving_messages = Handlers(bench)
    policies = Policies(PolicySet(bench.policy))
    app.state.setback = SimpleNamespace(rollouts=bench.rollouts, policies=policies)
    app.add_exception_handler(GuardError, on_guard_error)
    app.add_middleware(GuardMiddleware)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=URL)


def _fails_late(prompt: str) -> float:
    if "forbidden" in prompt:
        raise RuntimeError("scripted")
    return 0.1


def critic_fails(make_bench: MakeBench, mode: StreamMode) -> Bench:
    script = Script(lambda prompt: (START + LATE,), _fails_late, piece_tokens=1)
    return make_bench(script, stream=mode)


def store_fails(make_bench: MakeBench, mode: StreamMode) -> Bench:
    """Flagged text is released, and cannot be stored once it is whole."""
    script = Script(lambda prompt: (START + LATE,), piece_tokens=1)
    bench = make_bench(script, stream=mode, policy=ANNOTATE_ALL)
    bench.store.broken = True
    return bench


async def ask(bench: Bench, route: str) -> httpx2.Response:
    async with serving(bench) as http:
        return await http.post(route, json={"model": "m", "stream": True, **ROUTES[route]})


def events_of(answer: httpx2.Response) -> list[Event]:
    """Returns each event's object; `{"done": True}` for [DONE]."""
    data = [event.rpartition("data: ")[2] for event in answer.text.split("\n\n") if event]
    return [{"done": True} if line == "[DONE]" else json.loads(line) for line in data]


def ends(event: Event) -> bool:
    """Whether the event ends the answer in any way."""
    choices = event.get("choices", [])
    stopped = event.get("type") in ("message_delta", "message_stop")
    responded = event.get("type") in ("response.completed", "response.incomplete")
    finished = any(choice["finish_reason"] is not None for choice in choices)
    return stopped or responded or finished or "done" in event


FLOWING = pytest.mark.parametrize("mode", [StreamMode.WINDOW, StreamMode.ASYNC])
ROUTE = pytest.mark.parametrize("route", ROUTES)
FAILURE = pytest.mark.parametrize(
    ("fails", "code", "message"),
    [
        (critic_fails, "critic_unavailable", "The critique failed: RuntimeError."),
        (
            store_fails,
            "store_unavailable",
            "The database failed, so nothing was released; the server's log says why.",
        ),
    ],
    ids=["critic", "store"],
)


@FLOWING
@ROUTE
@FAILURE
async def test_a_guard_that_fails_in_a_stream_ends_it_with_our_error_and_no_other_end(
    make_bench: MakeBench, fails: Failing, code: str, message: str, route: str, mode: StreamMode
) -> None:
    answer = await ask(fails(make_bench, mode), route)
    assert answer.status_code == 200
    *flowed, last = events_of(answer)
    assert '"To' in json.dumps(flowed)
    assert last["error"]["code"] == code
    assert last["error"]["message"] == message
    assert not any(ends(event) or event.get("error") for event in flowed)


@FLOWING
@ROUTE
async def test_without_a_failure_the_same_stream_comes_to_its_end(
    make_bench: MakeBench, route: str, mode: StreamMode
) -> None:
    bench = make_bench(Script(lambda prompt: (START + LATE,), piece_tokens=1), stream=mode)
    events = events_of(await ask(bench, route))
    assert any(map(ends, events))
    assert not [event for event in events if event.get("error")]


@ROUTE
@FAILURE
async def test_before_the_first_chunk_a_failure_is_a_503(
    make_bench: MakeBench, fails: Failing, code: str, message: str, route: str
) -> None:
    answer = await ask(fails(make_bench, StreamMode.BUFFER), route)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == (code, message)


async def _read(events: AsyncIterator[BaseModel]) -> None:
    async for event in events:
        assert not ends(event.model_dump())


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, RESPONSES])
async def test_openais_client_raises_it(make_bench: MakeBench, route: str) -> None:
    http = serving(critic_fails(make_bench, StreamMode.WINDOW))
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", http_client=http) as client:
        create: Any = {
            CHAT: client.chat.completions.create,
            COMPLETIONS: client.completions.create,
            RESPONSES: client.responses.create,
        }[route]
        events = await create(model="m", stream=True, **ROUTES[route])
        with pytest.raises(openai.APIError) as caught:
            await _read(events)
    # The error has no status: the response had already begun as a 200.
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.code == "critic_unavailable"


async def test_anthropics_client_raises_it(make_bench: MakeBench) -> None:
    http = serving(critic_fails(make_bench, StreamMode.WINDOW))
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", http_client=http) as client:
        events: Any = await client.messages.create(model="m", stream=True, **ROUTES[MESSAGES])
        with pytest.raises(anthropic.APIError) as caught:
            await _read(events)
    assert "critic_unavailable" in str(caught.value.body)
