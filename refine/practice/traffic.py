"""Sends the practice world's requests to a running server, as users would. Owns who asks what.

Requests are of the "train" split, so that nothing the gate or an evaluation measures is ever sent.
"""

import random
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from refine.practice.world import Kind, Request, draw_request

_CLIENTS = 16
_PER_USER = 8


def send(base_url: str, kind: Kind, n: int, seed: int, without: Collection[str] = ()) -> int:
    """Sends `n` requests, each few by a user of their own; returns how many were withheld.

    base_url: as for OpenAI's client, ending in /v1. without: categories that are never asked for.
    """
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)
    model = next(iter(client.models.list())).id

    def ask(numbered: tuple[int, Request]) -> bool:
        number, request = numbered
        messages: Any = list(request.messages)
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=0,
            user=f"practice {seed} {number // _PER_USER}",
        )
        return answer.choices[0].finish_reason == "content_filter"

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return sum(pool.map(ask, enumerate(asked(kind, n, seed, without))))


def asked(kind: Kind, n: int, seed: int, without: Collection[str] = ()) -> list[Request]:
    """The requests that `send` sends."""
    rng = random.Random(f"traffic {kind} {seed}")
    found: list[Request] = []
    while len(found) < n:
        request = draw_request(rng, kind)
        if request.task is None or request.task.category not in without:
            found.append(request)
    return found
