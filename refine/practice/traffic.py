"""Sends the practice world's requests to a running server, as users would. Owns which requests are
sent. They are from the "train" split, so nothing that the gate or an evaluation measures is sent.
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
    """Sends `n` requests, a few by each user. Returns how many answers were withheld.

    base_url: as for OpenAI's client, ending in /v1. without: categories to leave out.
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
        return answer.moderation is not None

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return sum(pool.map(ask, enumerate(draw_traffic(kind, n, seed, without))))


def draw_traffic(kind: Kind, n: int, seed: int, without: Collection[str] = ()) -> list[Request]:
    """Returns the requests that `send` sends."""
    rng = random.Random(f"traffic {kind} {seed}")
    requests_: list[Request] = []
    while len(requests_) < n:
        request = draw_request(rng, kind)
        if request.task is None or request.task.category not in without:
            requests_.append(request)
    return requests_
