"""One load on one server, by vLLM's own bench client in this process. Owns ways of asking that it
lacks, none of them streamed: a chat completion, a moderation, and a verdict in words. The figures
are the client's own.
"""

import asyncio
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from vllm.benchmarks import serve
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    OPENAI_COMPATIBLE_BACKENDS,
    RequestFuncInput,
    RequestFuncOutput,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser

from guard import prompts

_CHAT = "/v1/chat/completions"
_MODERATIONS = "/v1/moderations"
_PERCENTILES = (50, 95, 99)
_TIMES = {"ttft": "time to first token", "itl": "between tokens", "e2el": "whole request"}
_AT_ONCE = 16
_ENDED = re.compile(r'"finish_reason": ?"(?:stop|length)"')


class LoadFailed(Exception):
    """Not every request was answered."""


@dataclass(frozen=True)
class Asking:
    """backend: the bench client's name of a way to ask. endpoint: where. timed: its times that
    mean something there."""

    backend: str
    endpoint: str
    timed: Sequence[str]


PLAIN = Asking("setback-chat", _CHAT, ("e2el",))
STREAMED = Asking("openai-chat", _CHAT, ("ttft", "itl", "e2el"))
MODERATION = Asking("setback-moderation", _MODERATIONS, ("e2el",))
VERDICT = Asking("setback-verdict", _CHAT, ("e2el",))


@dataclass(frozen=True)
class Load:
    """`clients` at once send `requests` to a model in all, each for at most `output_tokens`.

    tokenizer: the folder or name of the model's. past_end: answers go on past their end mark, so
    that all are of that length.
    """

    model: str
    tokenizer: Path
    clients: int
    output_tokens: int
    requests: int
    past_end: bool


def run_load(load: Load, asking: Asking, url: str, dataset: Path, salt: str) -> dict[str, float]:
    """Sends the load, waits for all answers and returns the figures by name; times in ms.

    dataset: JSON lines, each with a `prompt`. salt: rounds with different ones share no cache.
    Raises LoadFailed when a request was not answered.
    """
    options = {
        "--backend": asking.backend,
        "--base-url": url,
        "--endpoint": asking.endpoint,
        "--model": load.model,
        "--tokenizer": str(load.tokenizer),
        "--dataset-name": "custom",
        "--dataset-path": str(dataset),
        "--custom-output-len": str(load.output_tokens),
        "--num-prompts": str(load.requests),
        "--max-concurrency": str(load.clients),
        "--temperature": "0",
        "--percentile-metrics": ",".join(asking.timed),
        "--metric-percentiles": ",".join(map(str, _PERCENTILES)),
        "--extra-body": json.dumps({"cache_salt": salt}),
    }
    flags = ["--disable-tqdm", "--skip-chat-template", "--disable-shuffle"]
    flags += ["--ignore-eos"] if load.past_end else []
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    arguments = parser.parse_args([*(word for pair in options.items() for word in pair), *flags])
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        result = asyncio.run(serve.main_async(arguments))
    if result["completed"] != load.requests:
        raise LoadFailed(f"{url}: {result['completed']} of {load.requests} requests were answered")
    return dict(_figures(result, asking))


def _figures(result: Mapping[str, Any], asking: Asking) -> Iterator[tuple[str, float]]:
    yield "requests/s", result["request_throughput"]
    if result["output_throughput"]:
        yield "tokens/s", result["output_throughput"]
    for time_name in asking.timed:
        for percentile in _PERCENTILES:
            name = f"{_TIMES[time_name]}, p{percentile}, ms"
            yield name, result[f"p{percentile}_{time_name}_ms"]


def passing(
    url: str, model: str, asked: Sequence[str], output_tokens: int, *, past_end: bool
) -> list[str]:
    """Those prompts whose answers the guarded server lets out unchanged, streamed or not."""
    return asyncio.run(_passing(url, model, asked, output_tokens, past_end))


async def _passing(
    url: str, model: str, asked: Sequence[str], output_tokens: int, past_end: bool
) -> list[str]:
    free = asyncio.Semaphore(_AT_ONCE)

    async def passes(session: aiohttp.ClientSession, prompt: str) -> bool:
        body = _chat_body(prompt, model, output_tokens, past_end=past_end)
        for asked_as in (body, body | {"stream": True}):
            async with free, session.post(url + _CHAT, json=asked_as) as response:
                if not _ENDED.search(await response.text()):
                    return False
        return True

    async with aiohttp.ClientSession() as session:
        found = await asyncio.gather(*(passes(session, prompt) for prompt in asked))
    return [prompt for prompt, passed in zip(asked, found, strict=True) if passed]


def _chat_body(content: str, model: str, tokens: int, *, past_end: bool) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": tokens,
        "temperature": 0,
        "ignore_eos": past_end,
    }


def _chat(asked: RequestFuncInput) -> dict[str, Any]:
    body = _chat_body(str(asked.prompt), asked.model, asked.output_len, past_end=asked.ignore_eos)
    return body | (asked.extra_body or {})


def _verdict(asked: RequestFuncInput) -> dict[str, Any]:
    question = prompts.TEXT.format(text=asked.prompt) + prompts.CRITIQUE.format(subject="text")
    body = _chat_body(question, asked.model, asked.output_len, past_end=False)
    return body | (asked.extra_body or {})


def _moderation(asked: RequestFuncInput) -> dict[str, Any]:
    return {"input": asked.prompt}


def _asking(body: Callable[[RequestFuncInput], dict[str, Any]]) -> Any:
    """A request function of the bench client that posts a body and takes one JSON answer."""

    async def ask(
        request_func_input: RequestFuncInput, session: aiohttp.ClientSession, pbar: None = None
    ) -> RequestFuncOutput:
        started = time.perf_counter()
        output = RequestFuncOutput(start_time=started, prompt_len=request_func_input.prompt_len)
        posted = body(request_func_input)
        async with session.post(request_func_input.api_url, json=posted) as response:
            answer = await response.json()
        output.latency = output.ttft = time.perf_counter() - started
        output.success = response.status == 200
        output.error = "" if output.success else str(answer)
        output.output_tokens = answer.get("usage", {}).get("completion_tokens", 0)
        return output

    return ask


for _backend, _body in (
    (PLAIN.backend, _chat),
    (MODERATION.backend, _moderation),
    (VERDICT.backend, _verdict),
):
    ASYNC_REQUEST_FUNCS[_backend] = _asking(_body)
    OPENAI_COMPATIBLE_BACKENDS.append(_backend)
