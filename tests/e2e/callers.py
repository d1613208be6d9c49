"""Clients that stream chat after chat while something fails, and what must hold of all that they
received. Owns no fault and no server.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import httpx

from guard.policy_file import load_policy
from guard.store.flags import StoredFlag
from guard.tasks import spawn
from refine.practice.world import Kind, Request, requests
from tests.e2e.conftest import Server
from tests.e2e.listening import Reader, Received, listen

REFUSAL = load_policy().refusal
_PAUSE_S = 0.05
"""After a refused connection, so that clients of a dead server do not keep the processors busy."""


@dataclass
class Callers:
    """Clients at work. received: in order of their ends. cut_off: connections that broke."""

    http: httpx.AsyncClient
    requests: Sequence[Request]
    received: list[Received] = field(default_factory=list)
    cut_off: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, number: int) -> None:
        """Streams one request after another; every fourth client leaves midway."""
        rng = random.Random(number)
        for turn in count(number):
            leaves = rng.randint(1, 2500) if number % 4 == 3 else None
            request = self.requests[turn * 7 % len(self.requests)]
            try:
                received = await listen(self.http, request.messages, Reader(None, leaves))
            except httpx.HTTPError:
                self.cut_off += 1
                await asyncio.sleep(_PAUSE_S)
            else:
                self.received.append(received)
            self.changed.set()

    async def until(self, number: int, *, flagged: bool = True, status: int = 200) -> None:
        """Waits until that many more responses of the kind have come."""
        first = len(self.received)
        async with asyncio.timeout(120):
            while number > sum(
                one.status == status and (one.flagged or not flagged)
                for one in self.received[first:]
            ):
                self.changed.clear()
                await self.changed.wait()

    @property
    def statuses(self) -> Mapping[int, int]:
        """The number of responses by status."""
        return Counter(one.status for one in self.received)


@asynccontextmanager
async def calling(server: Server, clients: int) -> AsyncIterator[Callers]:
    """Runs clients of a server, two thirds of whose requests are harmful."""
    harmful, everyday = requests(Kind.HARMFUL, "held-out", 80), requests(Kind.EVERYDAY, "train", 40)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120, limits=limits) as http:
        callers = Callers(http, [*harmful, *everyday])
        running = [spawn(callers.client(number)) for number in range(clients)]
        try:
            yield callers
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def lost(received: Sequence[Received], flags: Mapping[str, StoredFlag]) -> list[Received]:
    """Returns what a client saw as flagged and the store does not have."""
    return [one for one in received if one.flagged and one.request_id not in flags]


def leaked(received: Sequence[Received], flags: Mapping[str, StoredFlag]) -> list[str]:
    """Returns parts of flagged answers that a client received although they were withheld."""
    parts = []
    for one in received:
        flag = flags.get(one.request_id)
        if flag is not None:
            shown, rest = flag.answer[: flag.released_chars], flag.answer[flag.released_chars :]
            part = one.shows(rest, shown + (flag.revision or REFUSAL))
            parts += [part] if part is not None else []
    return parts
