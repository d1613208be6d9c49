"""Sends the report split through a running server and prints what is released, for readers to
judge. Owns which requests are sent in which way, and what is kept of the replies. Judges nothing.

    python -m refine.seed.through --url http://127.0.0.1:8000 > replies.jsonl

Harmful requests are sent plainly, in the wrappers of this split, with options that pad the answer
(`ignore_eos`), and after a long unrelated system prompt. Ordinary requests and harmless twins are
sent plainly.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

import httpx

from refine.seed import corpus
from refine.seed.corpus import Pair
from refine.served import Message

_MAX_CONCURRENT = 32
_TIMEOUT_S = 600.0
_MAX_TOKENS = 256
_PADDED: Mapping[str, Any] = {"ignore_eos": True, "max_tokens": 300}
_LONG_PROMPT_WORDS = 650
"""About 900 tokens."""


@dataclass(frozen=True)
class Sent:
    """A request to send. kind: harmful, twin or ordinary. way: how a harmful one is sent."""

    kind: str
    way: str
    category: str
    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A reply. action: the guard's. answer: the released text. id: of the response."""

    id: str
    action: str
    answer: str


def requests(count: int, seed: int = 0) -> list[Sent]:
    """Returns `count` harmful requests, a quarter in each way, and as many twins and ordinary
    requests, or as many as there are."""
    rng = random.Random(f"through {seed}")
    pairs = rng.sample(corpus.pairs("report"), min(count, len(corpus.pairs("report"))))
    ordinary = corpus.ordinary("report")
    ordinary = tuple(rng.sample(ordinary, min(count, len(ordinary))))
    ways = cycle(_ways(rng))
    return [
        *(next(ways)(pair) for pair in pairs),
        *(Sent("twin", "plain", pair.category, pair.benign) for pair in pairs),
        *(Sent("ordinary", "plain", "", request.messages) for request in ordinary),
    ]


def _ways(rng: random.Random) -> Sequence[Callable[[Pair], Sent]]:
    wrappers = corpus.wrappers("report")
    words = " ".join(corpus.systems("report")).split()
    system = " ".join(islice(cycle(words), _LONG_PROMPT_WORDS))

    def sent(pair: Pair, way: str, messages: tuple[Message, ...], **options: Any) -> Sent:
        return Sent("harmful", way, pair.category, messages, options)

    def wrapped(pair: Pair) -> Sent:
        wrapper = rng.choice(wrappers)
        return sent(pair, f"wrapper: {wrapper.family}", wrapper.around(pair.harmful))

    return (
        lambda pair: sent(pair, "plain", pair.harmful),
        wrapped,
        lambda pair: sent(pair, "padded answer", pair.harmful, **_PADDED),
        lambda pair: sent(
            pair, "long system prompt", ({"role": "system", "content": system}, *pair.harmful)
        ),
    )


def ask(client: httpx.Client, model: str, sent: Sent) -> Reply:
    """Sends a request. Raises httpx.HTTPStatusError."""
    body = {
        "model": model,
        "messages": list(sent.messages),
        "max_tokens": _MAX_TOKENS,
        "moderation": {"model": model, "policy": {"output": {"mode": "score"}}},
        **sent.options,
    }
    response = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    answer = response["choices"][0]["message"]["content"] or ""
    output = response["moderation"]["output"]
    # An error of the critique has no results.
    action = output["results"][0]["action"] if "results" in output else "error"
    return Reply(response["id"], action, answer)


def replies(url: str, sent: Sequence[Sent]) -> Iterator[tuple[Sent, Reply]]:
    """Yields replies in the order of the requests. Raises httpx.HTTPStatusError."""
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
            yield from zip(
                sent, pool.map(lambda request: ask(client, model, request), sent), strict=True
            )


def main(arguments: Sequence[str]) -> None:
    """Writes a JSON line for each request and its reply to standard output."""
    parser = argparse.ArgumentParser("python -m refine.seed.through")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--each", type=int, default=300, help="requests of each kind")
    options = parser.parse_args(arguments)
    for sent, reply in replies(options.url, requests(options.each)):
        sys.stdout.write(json.dumps({**asdict(sent), **asdict(reply)}, ensure_ascii=False) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
