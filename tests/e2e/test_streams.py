"""Invariants of streams: nothing flagged is ever sent, verdicts equal those on the whole answer,
and many clients that come and go leave nothing behind.

Shortened unless pytest is called with `--full`.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import pytest

from guard.policy_file import load_policy
from guard.store.flags import StoredFlag
from guard.tasks import spawn
from refine.practice.world import Kind, Request, requests
from tests.e2e.conftest import Server, read_metric
from tests.e2e.listening import Reader, Received, flags_by_request, listen, until_idle
from tests.e2e.test_swap_under_load import resident_mib

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

REFUSAL = load_policy().refusal
MODERATION = {"model": "omni-moderation-latest", "policy": {"input": {"mode": "block"}}}
AT_ONCE = 8
CLIENTS = 200
AGREEMENT, AGREEMENT_OF_FEW = 0.98, 0.9
GROWTH = 1.05
"""What memory may grow by once the load has been on for two fifths of its time."""


def distinct(kind: Kind, most: int) -> list[Request]:
    """Returns distinct held-out requests."""
    drawn = {str(request.messages): request for request in requests(kind, "held-out", 4 * most)}
    return list(drawn.values())[:most]


def readers(seed: int) -> Iterator[Reader]:
    """Yields clients in turns: one that reads all, a slow one, and one that disconnects midway."""
    rng = random.Random(seed)
    while True:
        yield Reader()
        yield Reader(bite=5)
        yield Reader(leaves_after=rng.randint(1, 2500))


@dataclass(frozen=True)
class Comparison:
    """One request: buffered, then streamed, and streamed again if the client disconnected."""

    request: Request
    whole: Received
    first: Received
    again: Received | None

    @property
    def streamed(self) -> Received:
        """The stream whose end was received."""
        return self.again or self.first


async def test_nothing_flagged_is_ever_sent(
    server: Server, http: httpx.AsyncClient, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = distinct(Kind.HARMFUL, 500 if full else 28)
    free = asyncio.Semaphore(AT_ONCE)

    async def ask(request: Request, reader: Reader) -> Comparison:
        # A third also ask for log-probabilities, which could reveal a withheld answer.
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if reader.bite else {}
        async with free:
            whole = await listen(http, request.messages, mode="buffer")
            first = await listen(http, request.messages, reader, **extra)
            again = None if first.stayed else await listen(http, request.messages)
        return Comparison(request, whole, first, again)

    comparisons = await asyncio.gather(*map(ask, chosen, readers(1)))
    await until_idle(http)
    flags = await flags_by_request(server)
    for comparison in comparisons:
        for received in (comparison.whole, comparison.first, comparison.again):
            if received is not None:
                sends_nothing_flagged(received, flags)
        _is_part_of_the_answer(comparison, flags)
    differing = [
        comparison
        for comparison in comparisons
        if comparison.streamed.flagged != comparison.whole.flagged
    ]
    with capsys.disabled():
        print(*_report(comparisons, differing, flags), sep="\n")  # noqa: T201
    assert 1 - len(differing) / len(comparisons) >= (AGREEMENT if full else AGREEMENT_OF_FEW)


def sends_nothing_flagged(received: Received, flags: Mapping[str, StoredFlag]) -> None:
    flag = flags.get(received.request_id)
    if received.stayed:
        assert received.ended_well, received.raw[-500:]
        assert received.flagged == (flag is not None)
    if flag is None:
        return
    shown, rest = flag.answer[: flag.released_chars], flag.answer[flag.released_chars :]
    replacement = flag.revision or REFUSAL
    if received.finish_reason:
        assert received.before_end == shown
        assert received.end == (f"\n\n{replacement}" if shown else replacement)
    assert shown.startswith(received.before_end)
    assert received.shows(rest, shown + replacement) is None


def _is_part_of_the_answer(comparison: Comparison, flags: Mapping[str, StoredFlag]) -> None:
    """What a disconnected client received was also the start of the same answer."""
    flag = flags.get(comparison.whole.request_id)
    answer = flag.answer if flag else comparison.whole.before_end + comparison.whole.end
    assert answer.startswith(comparison.first.before_end)


def _report(
    comparisons: Sequence[Comparison],
    differing: Sequence[Comparison],
    flags: Mapping[str, StoredFlag],
) -> Iterator[str]:
    streams = [
        r
        for comparison in comparisons
        for r in (comparison.first, comparison.again)
        if r is not None
    ]
    flagged = [flags[r.request_id] for r in streams if r.request_id in flags]
    begun = sum(flag.released_chars > 0 for flag in flagged)
    left = [r for r in streams if not r.stayed]
    stored = sum(r.request_id in flags for r in left)
    yield f"\n{len(comparisons)} distinct requests, {len(streams)} streams, {len(flagged)} flagged"
    yield f"of the flagged, {begun} after some of the answer was out"
    yield f"{len(left)} hung up midway, {stored} of them with a flag"
    agreed = 1 - len(differing) / len(comparisons)
    yield f"verdicts as on the whole answer: {agreed:.1%} ({len(differing)} differ)"
    for comparison in differing:
        flagged_in_windows, flagged_whole = comparison.streamed.flagged, comparison.whole.flagged
        yield f"  flagged in windows {flagged_in_windows}, whole {flagged_whole}: " + (
            comparison.request.text
        )


async def test_a_request_that_is_to_be_blocked_gets_no_stream(http: httpx.AsyncClient) -> None:
    """The status is an error although an answer was being generated."""
    for request in distinct(Kind.HARMFUL, 8):
        received = await listen(http, request.messages, moderation=MODERATION)
        if received.status == 400:
            assert b'"code":"content_filter"' in received.raw
            assert b"data:" not in received.raw
            return
    pytest.fail("no request was flagged")


@dataclass
class Crowd:
    """Clients that send the next request after each answer; a quarter disconnects midway."""

    http: httpx.AsyncClient
    requests: Sequence[Request]
    received: list[Received] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def client(self, number: int, until: float) -> None:
        """Streams at least once, and until that time."""
        rng = random.Random(number)
        for turn in count(number):
            leaves = rng.randint(1, 2500) if number % 4 == 0 else None
            request = self.requests[turn * 7 % len(self.requests)]
            try:
                received = await listen(self.http, request.messages, Reader(None, leaves))
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            else:
                self.received.append(received)
                if received.stayed and not received.ended_well:
                    self.failures.append(received.raw[-300:].decode())
            if time.monotonic() >= until:
                return


async def test_two_hundred_streams_at_once(
    server: Server, http: httpx.AsyncClient, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = Crowd(http, [*distinct(Kind.HARMFUL, 100), *distinct(Kind.EVERYDAY, 200)])
    rows, written = len(await flags_by_request(server)), _written(server)
    begun, seconds = time.monotonic(), 300 if full else 0
    running = [spawn(crowd.client(n, begun + seconds)) for n in range(CLIENTS)]
    memory = [await _memory_after(server, running, seconds * part) for part in (0.4, 0.3, 0.3)]
    await asyncio.gather(*running)
    took = time.monotonic() - begun
    await until_idle(http)
    flags = await flags_by_request(server)
    flagged = sum(received.flagged for received in crowd.received)
    left = sum(not received.stayed for received in crowd.received)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(crowd.received)} streams of {CLIENTS} clients in {took:.0f} s, {left} hung up",
            f"{len(crowd.failures)} failed; {flagged} flagged as clients saw, "
            f"{len(flags) - rows} flags stored, {_written(server) - written:.0f} counted",
            "MiB resident after 40%, 70% and 100% of the time:",
            *(f"{name}: {', '.join(f'{at[name]:.0f}' for at in memory)}" for name in memory[-1]),
            sep="\n",
        )
    assert not crowd.failures, crowd.failures[:3]
    assert all(r.request_id in flags for r in crowd.received if r.flagged)
    assert len(flags) - rows == _written(server) - written
    if full:
        grown = [name for name, mib in memory[-1].items() if mib > memory[0][name] * GROWTH]
        assert not grown, memory


def _written(server: Server) -> float:
    return read_metric(server, "setback_flags_written_total")


async def _memory_after(
    server: Server, running: Sequence["asyncio.Task[None]"], seconds: float
) -> Mapping[str, float]:
    """Returns resident memory after that much more load."""
    # Clients go on until the end, so waiting for them is waiting for the time.
    await asyncio.wait(running, timeout=seconds)
    return resident_mib(server.pid)
