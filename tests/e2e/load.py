"""Clients that load a server, plain and streamed, and what they were answered. Asserts nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from guard.tasks import spawn
from tests.e2e.conftest import Server


@dataclass(frozen=True)
class Answer:
    """One answered request; times are monotonic."""

    begun: float
    ended: float
    adapter: str
    prompt: int
    text: str


@dataclass
class Load:
    """Clients that send the next request after each answer; every other one streams."""

    http: httpx.AsyncClient
    model: str
    prompts: Sequence[str]
    tokens: int
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    awaited: dict[str, asyncio.Event] = field(default_factory=dict)

    async def client(self, number: int) -> None:
        turn = number
        while True:
            prompt = turn % len(self.prompts)
            begun = time.monotonic()
            try:
                adapter, text = await self.ask(prompt, stream=number % 2 == 0)
                self.answers.append(Answer(begun, time.monotonic(), adapter, prompt, text))
                self.awaited.setdefault(adapter, asyncio.Event()).set()
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.failures.append(repr(error))
            turn += 5

    async def ask(self, prompt: int, *, stream: bool) -> tuple[str, str]:
        """Returns the adapter that answered, and the whole answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompts[prompt]}],
            "temperature": 0,
            "max_tokens": self.tokens,
            "stream": stream,
        }
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            content = (await response.aread()).decode()
            response.raise_for_status()
            adapter = response.headers["x-setback-adapter"]
        if not stream:
            return adapter, json.loads(content)["choices"][0]["message"]["content"]
        events = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
        if events.pop() != "[DONE]":
            raise ValueError(f"a stream broke off: {content[-200:]}")
        deltas = (choice["delta"] for event in events for choice in json.loads(event)["choices"])
        return adapter, "".join(delta.get("content") or "" for delta in deltas)

    async def until_answered_by(self, adapter: str) -> None:
        """Waits for the next answer of that adapter."""
        self.awaited[adapter] = asyncio.Event()
        async with asyncio.timeout(60):
            await self.awaited[adapter].wait()

    def latencies(self, within: Callable[[Answer], bool]) -> list[float]:
        """Returns the seconds of each answer that `within` selects, sorted."""
        return sorted(answer.ended - answer.begun for answer in self.answers if within(answer))


@asynccontextmanager
async def loaded(
    server: Server, model: str, prompts: Sequence[str], *, clients: int, tokens: int
) -> AsyncIterator[Load]:
    """Loads a server with that many clients."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120, limits=limits) as http:
        load = Load(http, model, prompts, tokens)
        running = [spawn(load.client(number)) for number in range(clients)]
        try:
            yield load
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def percentile(sorted_values: Sequence[float], percent: int) -> float:
    """Returns the value below which so many percent of the sorted values lie."""
    return sorted_values[min(len(sorted_values) - 1, len(sorted_values) * percent // 100)]
