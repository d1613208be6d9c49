"""One load on one server, by vLLM's own benchmark client in this process. Owns three request types
that the client lacks, none of them streamed: a chat completion, a moderation, and a verdict in
words. The figures are the client's own.
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
_METRIC_NAMES = {"ttft": "time to first token", "itl": "between tokens", "e2el": "whole request"}
_CONCURRENCY = 16
_ENDED = re.compile(r'"finish_reason": ?"(?:stop|length)"')


class LoadFailed(Exception):
    """Not every request was answered."""


@dataclass(frozen=True)
class RequestType:
    """backend: the benchmark client's name of a request type. endpoint: its path. timed: the
    latencies that apply to it."""

    backend: str
    endpoint: str
    timed: Sequence[str]


PLAIN = RequestType("setback-chat", _CHAT, ("e2el",))
STREAMED = RequestType("openai-chat", _CHAT, ("ttft", "itl", "e2el"))
MODERATION = RequestType("setback-moderation", _MODERATIONS, ("e2el",))
VERDICT = RequestType("setback-verdict", _CHAT, ("e2el",))


@dataclass(frozen=True)
class LoadSettings:
    """`clients` send `requests` in total, each for at most `output_tokens`, to one model.

    tokenizer: the model's folder or name. ignore_eos: answers go on past their end mark, so that
    all have the same length.
    """

    model: str
    tokenizer: Path
    clients: int
    output_tokens: int
    requests: int
    ignore_eos: bool


def run_load(
    load: LoadSettings, request_type: RequestType, url: str, dataset: Path, salt: str
) -> dict[str, float]:
    """Sends the load, waits for all answers and returns the figures by name; times in ms.

    dataset: JSON lines, each with a `prompt`. salt: rounds with different salts share no cache.
    Raises LoadFailed when a request was not answered.
    """
    options = {
        "--backend": request_type.backend,
        "--base-url": url,
        "--endpoint": request_type.endpoint,
        "--model": load.model,
        "--tokenizer": str(load.tokenizer),
        "--dataset-name": "custom",
        "--dataset-path": str(dataset),
        "--custom-output-len": str(load.output_tokens),
        "--num-prompts": str(load.requests),
        "--max-concurrency": str(load.clients),
        "--temperature": "0",
        "--percentile-metrics": ",".join(request_type.timed),
        "--metric-percentiles": ",".join(map(str, _PERCENTILES)),
        "--extra-body": json.dumps({"cache_salt": salt}),
    }
    flags = ["--disable-tqdm", "--skip-chat-template", "--disable-shuffle"]
    flags += ["--ignore-eos"] if load.ignore_eos else []
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    arguments = parser.parse_args([*(word for pair in options.items() for word in pair), *flags])
    client_output = io.StringIO()
    with redirect_stdout(client_output), redirect_stderr(client_output):
        result = asyncio.run(serve.main_async(arguments))
    if result["completed"] != load.requests:
        raise LoadFailed(f"{url}: {result['completed']} of {load.requests} requests were answered")
    return dict(_figures(result, request_type))


def _figures(result: Mapping[str, Any], request_type: RequestType) -> Iterator[tuple[str, float]]:
    yield "requests/s", result["request_throughput"]
    if result["output_throughput"]:
        yield "tokens/s", result["output_throughput"]
    for metric in request_type.timed:
        for percentile in _PERCENTILES:
            name = f"{_METRIC_NAMES[metric]}, p{percentile}, ms"
            yield name, result[f"p{percentile}_{metric}_ms"]


def passing(
    url: str, model: str, candidates: Sequence[str], output_tokens: int, *, ignore_eos: bool
) -> list[str]:
    """Returns the prompts whose answers the guarded server releases unchanged in either mode."""
    return asyncio.run(_passing(url, model, candidates, output_tokens, ignore_eos))


async def _passing(
    url: str, model: str, candidates: Sequence[str], output_tokens: int, ignore_eos: bool
) -> list[str]:
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def passes(session: aiohttp.ClientSession, prompt: str) -> bool:
        body = _chat_body(prompt, model, output_tokens, ignore_eos=ignore_eos)
        for variant in (body, body | {"stream": True}):
            async with slots, session.post(url + _CHAT, json=variant) as response:
                text = await response.text()
                # A revised answer ends like any other, but is marked.
                if not _ENDED.search(text) or '"moderation"' in text:
                    return False
        return True

    async with aiohttp.ClientSession() as session:
        results = await asyncio.gather(*(passes(session, prompt) for prompt in candidates))
    return [prompt for prompt, passed in zip(candidates, results, strict=True) if passed]


def _chat_body(content: str, model: str, tokens: int, *, ignore_eos: bool) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": tokens,
        "temperature": 0,
        "ignore_eos": ignore_eos,
    }


def _chat(request: RequestFuncInput) -> dict[str, Any]:
    body = _chat_body(
        str(request.prompt), request.model, request.output_len, ignore_eos=request.ignore_eos
    )
    return body | (request.extra_body or {})


def _verdict(request: RequestFuncInput) -> dict[str, Any]:
    question = prompts.TEXT.format(text=request.prompt) + prompts.CRITIQUE.format(subject="text")
    body = _chat_body(question, request.model, request.output_len, ignore_eos=False)
    return body | (request.extra_body or {})


def _moderation(request: RequestFuncInput) -> dict[str, Any]:
    return {"input": request.prompt}


def _request_function(body: Callable[[RequestFuncInput], dict[str, Any]]) -> Any:
    """Returns a request function of the benchmark client that posts a body for a JSON answer."""

    async def ask(
        request_func_input: RequestFuncInput, session: aiohttp.ClientSession, pbar: None = None
    ) -> RequestFuncOutput:
        started = time.perf_counter()
        output = RequestFuncOutput(start_time=started, prompt_len=request_func_input.prompt_len)
        payload = body(request_func_input)
        async with session.post(request_func_input.api_url, json=payload) as response:
            content = await response.json()
        output.latency = output.ttft = time.perf_counter() - started
        output.success = response.status == 200
        output.error = "" if output.success else str(content)
        output.output_tokens = content.get("usage", {}).get("completion_tokens", 0)
        return output

    return ask


for _backend, _body in (
    (PLAIN.backend, _chat),
    (MODERATION.backend, _moderation),
    (VERDICT.backend, _verdict),
):
    ASYNC_REQUEST_FUNCS[_backend] = _request_function(_body)
    OPENAI_COMPATIBLE_BACKENDS.append(_backend)
