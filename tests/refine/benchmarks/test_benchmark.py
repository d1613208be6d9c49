"""A set sent through a real HTTP server: requests, stored verdicts, retries and failures."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refine.benchmarks.benchmark import BenchmarkRun, Plan, run_benchmark
from refine.benchmarks.public_api import (
    ADAPTER_HEADER,
    PublicApi,
    RequestRoute,
    ServerAddress,
)
from refine.benchmarks.rows import BenchmarkRow, BenchmarkSet, answer, request, text
from refine.errors import BenchmarkBusy, ServerChanged, ServerUnavailable
from tests.refine.benchmarks.public_server import PublicServer, Reply, serving

ROWS = (
    text(1, "a bad text", harmful=True),
    text(2, "a good text", harmful=False),
    request(3, "a bad request", harmful=True),
    answer(4, "a request", "a bad answer", harmful=True),
    answer(5, "a bad request", "a good answer", harmful=False),
)


@pytest.fixture
def server() -> Iterator[PublicServer]:
    with serving(PublicServer()) as running:
        yield running


def benchmark(*rows: BenchmarkRow) -> BenchmarkSet:
    return BenchmarkSet("jsonl", "a.jsonl", rows)


class Run:
    """Sends sets through a server, with a work folder and without real pauses."""

    def __init__(self, server: PublicServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.paused: list[float] = []
        self.advanced = 0
        self.third = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    def advance(self, rows: int) -> None:
        self.advanced += rows
        if self.advanced == 3:
            self.third.set()

    async def __call__(
        self,
        *rows: BenchmarkRow,
        concurrency: int = 4,
        limit: int | None = None,
        key: str | None = None,
        route: RequestRoute = "moderations",
    ) -> BenchmarkRun:
        address = ServerAddress("stub", self.server.url)
        async with PublicApi(address, key, route=route, pause=self.pause) as api:
            plan = Plan(self.folder, concurrency, limit)
            return await run_benchmark(api, benchmark(*rows), plan, self.advance)


@pytest.fixture
def run(server: PublicServer, tmp_path: Path) -> Run:
    return Run(server, tmp_path)


def refusal(status: int, headers: dict[str, str] | None = None) -> Reply:
    return status, headers or {}, {"error": {"message": "not now", "code": "x"}}


def flags(result: BenchmarkRun) -> list[bool]:
    return [kept.verdict.flagged for _, kept in result.judged]


def test_the_header_is_the_servers() -> None:
    from server.guarded.response import ADAPTER_HEADER as SERVED

    assert ADAPTER_HEADER == SERVED


async def test_every_kind_goes_to_moderations_as_it_should(run: Run) -> None:
    result = await run(*ROWS)
    assert flags(result) == [True, False, True, True, False]
    assert {path for path, _ in run.server.bodies} == {"/v1/moderations"}
    inputs = {body["input"] for _, body in run.server.bodies if "input" in body}
    assert inputs == {"a bad text", "a good text", "a bad request"}
    conversations = [body["messages"] for _, body in run.server.bodies if "messages" in body]
    assert [
        {"role": "user", "content": "a request"},
        {"role": "assistant", "content": "a bad answer"},
    ] in (conversations)
    assert result.judged[0][1].verdict.score == pytest.approx(0.9)
    assert run.advanced == len(ROWS)


async def test_the_identity_is_what_the_server_says(run: Run) -> None:
    identity = (await run(*ROWS)).identity
    assert (identity.model, identity.model_revision) == ("stub", "r1")
    assert (identity.policy, identity.adapter) == ("p1", "base")


async def test_requests_can_go_through_chat(run: Run) -> None:
    rows = (request(1, "bad", harmful=True), request(2, "blocked", harmful=True), ROWS[0])
    result = await run(*rows, route="chat")
    assert flags(result) == [True, True, True]
    assert [kept.verdict.score for _, kept in result.judged][1] is None
    paths = sorted(path for path, _ in run.server.bodies)
    assert paths == ["/v1/chat/completions"] * 2 + ["/v1/moderations"]
    chats = [body for path, body in run.server.bodies if path == "/v1/chat/completions"]
    assert chats[0]["moderation"] == {"model": "omni-moderation-latest"}
    assert chats[0]["model"] == "stub"


async def test_a_key_is_sent_as_a_bearer_token(run: Run) -> None:
    await run(*ROWS, key="secret")
    assert run.server.keys == {"Bearer secret"}


async def test_half_a_character_reaches_the_server(run: Run) -> None:
    await run(text(1, "half \ud83d", harmful=False))
    assert run.server.bodies[0][1]["input"] == "half \ud83d"


async def test_stored_verdicts_are_not_requested_again(run: Run) -> None:
    first = await run(*ROWS)
    run.server.bodies.clear()
    second = await run(*ROWS)
    assert run.server.bodies == []
    assert [kept.verdict for _, kept in second.judged] == [kept.verdict for _, kept in first.judged]


async def test_a_sample_is_part_of_the_whole(run: Run) -> None:
    part = await run(*ROWS, limit=2)
    assert len(part.judged) == 2
    assert len(run.server.bodies) == 2
    await run(*ROWS)
    assert len(run.server.bodies) == len(ROWS)


async def test_two_runs_do_not_write_one_file(run: Run) -> None:
    many = [text(line, f"text {line}", harmful=False) for line in range(40)]
    task = asyncio.ensure_future(run(*many, concurrency=1))
    await run.third.wait()
    with pytest.raises(BenchmarkBusy, match="Another run"):
        await run(*many)
    assert len((await task).judged) == 40


async def test_a_killed_run_goes_on_even_after_half_a_line(run: Run) -> None:
    await run(*ROWS)
    (file,) = run.folder.glob("*.jsonl")
    written = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(written[:3]) + written[3][:9])
    run.server.bodies.clear()
    result = await run(*ROWS)
    assert len(run.server.bodies) == 3
    assert len(result.judged) == len(ROWS)
    assert len([json.loads(line) for line in file.read_bytes().splitlines()]) == len(ROWS) + 1


async def test_a_cancelled_run_keeps_what_came(run: Run) -> None:
    many = [text(line, f"text {line}", harmful=False) for line in range(40)]
    task = asyncio.ensure_future(run(*many, concurrency=1))
    await run.third.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sent = len(run.server.bodies)
    result = await run(*many)
    assert len(result.judged) == 40
    assert len(run.server.bodies) - sent <= 38


@pytest.mark.parametrize("change", [{"adapter": "7"}, {"policy": "p2"}, {"model": "other"}])
async def test_verdicts_of_another_identity_are_not_used(run: Run, change: dict[str, str]) -> None:
    await run(*ROWS)
    for name, value in change.items():
        setattr(run.server, name, value)
    run.server.bodies.clear()
    await run(*ROWS)
    assert len(run.server.bodies) == len(ROWS)


async def test_an_adapter_that_changes_midway_ends_the_run(run: Run) -> None:
    run.server.adapter_after = (3, "7")
    with pytest.raises(ServerChanged, match="adapter base; now .* adapter 7"):
        await run(*ROWS, concurrency=1)
    run.server.adapter = "base"
    run.server.adapter_after = None
    run.server.bodies.clear()
    result = await run(*ROWS)
    assert len(run.server.bodies) == 2
    assert {kept.verdict.flagged for _, kept in result.judged} == {True, False}


async def test_a_policy_that_changes_midway_ends_the_run_and_nothing_is_kept(run: Run) -> None:
    run.server.policy_after = (3, "p2")
    with pytest.raises(ServerChanged, match="policy p1.*policy p2"):
        await run(*ROWS)
    run.server.policy, run.server.policy_after = "p1", None
    run.server.bodies.clear()
    await run(*ROWS)
    assert len(run.server.bodies) == len(ROWS)


async def test_a_busy_server_is_retried_after_the_stated_pause(run: Run) -> None:
    run.server.refusals = [refusal(429, {"retry-after": "7"}), refusal(503), refusal(503)]
    result = await run(ROWS[0])
    assert flags(result) == [True]
    assert run.paused == [7.0, 1.0, 2.0]


async def test_a_long_retry_after_is_cut(run: Run) -> None:
    run.server.refusals = [refusal(429, {"retry-after": "9999"})]
    await run(ROWS[0])
    assert run.paused == [60.0]


async def test_a_server_that_stays_busy_is_a_failure_and_no_verdict(run: Run) -> None:
    run.server.refusals = [refusal(503)] * 6
    result = await run(ROWS[0], ROWS[1], concurrency=1)
    assert result.failures == {"503: not now": 1}
    assert flags(result) == [False]
    assert result.drawn == 2


async def test_a_failed_row_is_sent_again_by_the_next_run(run: Run) -> None:
    run.server.refusals = [refusal(400)]
    assert (await run(ROWS[0])).failed == 1
    assert run.paused == []
    assert flags(await run(ROWS[0])) == [True]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"results": []},
        {"results": [{"flagged": "no"}]},
        {"results": [{"flagged": True, "category_scores": {"hate": "high"}}]},
    ],
)
async def test_a_response_without_a_verdict_is_a_failure(
    run: Run, content: dict[str, object]
) -> None:
    run.server.refusals = [(200, {"x-setback-adapter": "base"}, content)]
    assert (await run(ROWS[0])).failed == 1


async def test_an_unjudged_chat_answer_is_a_failure(run: Run) -> None:
    error = {"type": "error", "code": "critic_unavailable", "message": "it failed"}
    body = {"moderation": {"input": error, "output": error}}
    run.server.refusals = [(200, {"x-setback-adapter": "base"}, body)]
    result = await run(ROWS[2], route="chat")
    assert result.failures == {"critic_unavailable: it failed": 1}


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refused_key_ends_the_run_at_once(run: Run, status: int) -> None:
    run.server.refusals = [refusal(status)] * 99
    with pytest.raises(ServerUnavailable, match=f"{status}: not now"):
        await run(*ROWS, concurrency=1)
    assert len(run.server.bodies) == 1


async def test_a_server_that_is_not_there_is_named_at_once(run: Run) -> None:
    run.server.url = "http://127.0.0.1:9"
    with pytest.raises(ServerUnavailable, match="http://127.0.0.1:9"):
        await run(*ROWS)
    assert run.paused == []
