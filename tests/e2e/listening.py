"""Clients of streamed chat that keep every received byte, and what can be read from it."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from guard.criteria import Place
from guard.store.flags import StoredFlag
from guard.store.review import Filter, ReviewStore
from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import Server

Messages = Sequence[Mapping[str, str]]

_IDLE_S = 60
_RUN = 12
"""As many characters in a row are not the same by chance."""


@dataclass(frozen=True)
class Reader:
    """How a client reads. bite: the most bytes it reads at a time, for a slow client.

    leaves_after: the number of bytes after which it disconnects.
    """

    bite: int | None = None
    leaves_after: int | None = None


@dataclass(frozen=True)
class Received:
    """What one client received. stayed: whether it read until the server ended the stream."""

    request_id: str
    status: int
    raw: bytes
    stayed: bool

    @property
    def events(self) -> list[Any]:
        """The data of every complete event, without the end mark."""
        whole = self.raw.decode(errors="replace").split("\n\n")[:-1]
        data = (event.removeprefix("data: ") for event in whole)
        return [json.loads(event) for event in data if event != "[DONE]"]

    @property
    def _choices(self) -> Iterator[Any]:
        for event in self.events:
            yield from event.get("choices", ())

    @property
    def ended_well(self) -> bool:
        """Whether the stream ended properly and without an error."""
        errors = any("error" in event for event in self.events)
        return self.status == 200 and self.raw.endswith(b"data: [DONE]\n\n") and not errors

    @property
    def finish_reason(self) -> str | None:
        """The finish reason, or None if the client left earlier."""
        return next((c["finish_reason"] for c in self._choices if c["finish_reason"]), None)

    @property
    def flagged(self) -> bool:
        """Whether the end of the answer was replaced."""
        findings = (event["moderation"]["output"] for event in self.events if "moderation" in event)
        actions = {result["action"] for output in findings for result in output["results"]}
        return bool(actions & {"revise", "block"})

    @property
    def before_end(self) -> str:
        """All content except the last piece."""
        deltas = (c["delta"] for c in self._choices if not c["finish_reason"])
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def end(self) -> str:
        """The content of the last piece."""
        deltas = (c["delta"] for c in self._choices if c["finish_reason"])
        return "".join(delta.get("content") or "" for delta in deltas)

    def shows(self, text: str, allowed: str) -> str | None:
        """Returns a part of `text`, but not of `allowed`, that appears in any received field, or
        None."""
        readable = [self.raw.decode(errors="replace"), *_strings(self.events)]
        runs = (text[at : at + _RUN] for at in range(len(text) - _RUN + 1))
        hidden = (run for run in runs if run not in allowed)
        return next((run for run in hidden if any(run in content for content in readable)), None)


def _strings(events: Iterable[Any]) -> list[str]:
    """Returns the strings of each field, joined over all events."""
    fields: defaultdict[tuple[str, ...], str] = defaultdict(str)

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, str):
            fields[path] += value
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(part, (*path, key))
        elif isinstance(value, list):
            for part in value:
                walk(part, path)

    for event in events:
        walk(event, ())
    return list(fields.values())


async def listen(
    http: httpx.AsyncClient,
    messages: Messages,
    reader: Reader = Reader(),
    *,
    mode: str | None = None,
    **params: Any,
) -> Received:
    """Requests one greedy streamed chat. mode: the stream mode, if not the server's."""
    request_id = uuid4().hex
    headers = {"x-request-id": request_id} | ({"x-setback-stream": mode} if mode else {})
    body = {
        "model": MODEL_NAME,
        "messages": list(messages),
        "temperature": 0,
        "stream": True,
        **params,
    }
    raw = b""
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        async for chunk in response.aiter_raw(reader.bite):
            raw += chunk
            if reader.leaves_after is not None and len(raw) >= reader.leaves_after:
                return Received(request_id, response.status_code, raw, stayed=False)
            if reader.bite is not None:
                await asyncio.sleep(0)
    return Received(request_id, response.status_code, raw, stayed=True)


async def flags_by_request(server: Server) -> dict[str, StoredFlag]:
    """Returns every flag of a single-choice chat, by the client's request id."""
    store = ReviewStore(server.database)
    try:
        flags = await store.page(Filter(place=Place.OUTPUT), limit=1_000_000)
    finally:
        await store.close()
    return {flag.request_id.removeprefix("chatcmpl-"): flag for flag in flags}


async def until_idle(http: httpx.AsyncClient) -> None:
    """Waits until the engine is idle. Fails if something is stuck."""
    async with asyncio.timeout(_IDLE_S):
        while await _busy(http):
            pass


async def _busy(http: httpx.AsyncClient) -> float:
    # The engine reports its load only while it works, so it gets a short request.
    body = {"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 1}
    (await http.post("/v1/completions", json=body)).raise_for_status()
    lines = (await http.get("/metrics")).text.splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))
