"""Adapters are swapped under load: no request fails and no answer mixes two adapters.

Latency and memory are printed, not asserted, because they depend on the machine. Shortened unless
pytest is called with `--full`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from guard.store.migrate import upgrade
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.world import Kind, requests
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import ALL_THREADS, SETBACK, Server, running_server
from tests.e2e.load import Answer, Load, loaded, percentile
from tests.e2e.refine_access import model_revision, refine_headers

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1800)]

CLIENTS = 16
PROMPTS = 32
TOKENS = 24
SWAPS = 10
PASS_ALL = '[default]\nthreshold = 1.0\naction = "pass"\n'


@dataclass(frozen=True)
class Length:
    """quiet_s: the time before the first swap. between_s: after each swap. many: the number of
    swaps; memory is measured after a tenth of them, after half, and at the end."""

    quiet_s: float
    between_s: float
    many: int


LENGTH = Length(20.0, 3.0, 100)


async def expected(
    server: Server, prompts: Sequence[str], adapters: Sequence[int | str]
) -> Mapping[str, Sequence[str]]:
    """Returns each adapter's answer to each prompt, without other load."""
    headers = await refine_headers(server)
    answers = {}
    async with httpx.AsyncClient(
        base_url=f"{server.base_url}/v1/guard/refine", headers=headers, timeout=120
    ) as http:
        for adapter in adapters:
            body = {
                "adapter": adapter,
                "conversations": [[{"role": "user", "content": prompt}] for prompt in prompts],
                "max_tokens": TOKENS,
                "reminder": True,
            }
            reply = (await http.post("/answers", json=body)).raise_for_status().json()
            answers[reply["adapter"]] = reply["answers"]
    return answers


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [str(one.messages[-1]["content"]) for one in requests(Kind.EVERYDAY, "train", PROMPTS)]


@pytest.mark.parametrize("processes", [2, 1])
def test_swaps_under_load(
    tmp_path: Path,
    prompts: list[str],
    capsys: pytest.CaptureFixture[str],
    processes: int,
) -> None:
    (tmp_path / "policy.toml").write_text(PASS_ALL)
    database = f"sqlite:///{tmp_path}/flags.db"
    upgrade(parse_url(database))
    folder = tmp_path / "adapters"
    options = ["--adapters-dir", str(folder), "--adapter-poll-s", "0.1"]
    options += ["--policy-file", str(tmp_path / "policy.toml")]
    options += ["--api-server-count", str(processes)]
    with running_server(
        tmp_path,
        database,
        lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
        environment=ALL_THREADS,
    ) as server:
        report = asyncio.run(measured(server, folder, prompts, LENGTH))
    with capsys.disabled():
        print(f"\n{processes} API process(es)", *report, sep="\n")  # noqa: T201


async def measured(server: Server, folder: Path, prompts: list[str], length: Length) -> list[str]:
    """Runs the whole check and returns its figures, one per line."""
    revision = await model_revision(server)
    trained = [train_nothing(folder.parent / f"trained-{seed}", seed) for seed in (1, 2)]
    pair = [await publish(server.database, folder, path, revision) for path in trained]
    many = [
        await publish(server.database, folder, trained[turn % 2], revision)
        for turn in range(length.many)
    ]
    return [
        *await _ten_swaps(server, prompts, pair, length),
        *await _many_swaps(server, prompts, many),
    ]


async def _ten_swaps(
    server: Server, prompts: list[str], pair: list[int], length: Length
) -> list[str]:
    known = await expected(server, prompts, pair)
    differing = sum(a != b for a, b in zip(*known.values(), strict=True))
    assert differing > len(prompts) // 2, "the adapters do not differ enough to tell them apart"
    # One of several API processes may be a moment late for the first swap.
    known = {**known, **await expected(server, prompts, ["base"])}
    await activate(server.database, pair[0])
    swaps = []
    async with loaded(server, MODEL_NAME, prompts, clients=CLIENTS, tokens=TOKENS) as load:
        await load.until_answered_by(f"setback-{pair[0]}")
        # The first answers of a load are slow: connections open, caches are cold.
        await asyncio.sleep(length.between_s)
        quiet = time.monotonic()
        await asyncio.sleep(length.quiet_s)
        for turn in range(1, SWAPS + 1):
            swaps.append(time.monotonic())
            await activate(server.database, pair[turn % 2])
            await load.until_answered_by(f"setback-{pair[turn % 2]}")
            await asyncio.sleep(length.between_s)
    assert not load.failures
    mixed = [a for a in load.answers if a.text not in [texts[a.prompt] for texts in known.values()]]
    wrong = [a for a in load.answers if a.text != known[a.adapter][a.prompt]]
    before = load.latencies(lambda a: a.begun >= quiet and a.ended <= swaps[0])
    during = load.latencies(partial(_overlaps, swaps=swaps))
    longest = [load.latencies(partial(_overlaps, swaps=[at]))[-1] for at in swaps]
    # The machine's other load changes by the minute, so the seconds between swaps count as well.
    between = load.latencies(lambda a: a.begun > swaps[0] and not _overlaps(a, swaps))
    assert not mixed, mixed[:3]
    assert not wrong, wrong[:3]
    return [
        f"{CLIENTS} clients, {SWAPS} swaps: {len(load.answers)} answers, 0 failed, 0 mixed",
        f"before: {_spread(before)}; {len(before) / (swaps[0] - quiet):.1f} requests/s",
        f"in the swap seconds: {_spread(during)}",
        f"longest in each: {', '.join(f'{seconds:.2f}' for seconds in longest)}",
        f"in the seconds between: {_spread(between)}",
        f"p99 in the swap seconds to before: {percentile(during, 99) / percentile(before, 99):.2f}",
    ]


def _overlaps(answer: Answer, swaps: Sequence[float]) -> bool:
    """Whether the answer was being generated in the second after a swap."""
    return any(answer.begun < at + 1 and answer.ended > at for at in swaps)


async def _many_swaps(server: Server, prompts: list[str], many: list[int]) -> list[str]:
    async with loaded(server, MODEL_NAME, prompts, clients=2, tokens=TOKENS) as load:
        begun, halfway_at = len(many) // 10, len(many) * 11 // 20
        for version in many[:begun]:
            await _swap(server, load, version)
        before = resident_mib(server.pid)
        for version in many[begun:halfway_at]:
            await _swap(server, load, version)
        halfway = resident_mib(server.pid)
        for version in many[halfway_at:]:
            await _swap(server, load, version)
        after = resident_mib(server.pid)
    assert not load.failures
    figures = (
        f"{name}: {before[name]:.0f}, {halfway[name]:.0f}, {after[name]:.0f}" for name in after
    )
    return [f"MiB resident after {begun}, {halfway_at} and {len(many)} swaps:", *figures]


async def _swap(server: Server, load: Load, version: int) -> None:
    await activate(server.database, version)
    await load.until_answered_by(f"setback-{version}")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no answers"
    p50, p99 = percentile(values, 50), percentile(values, 99)
    return f"p50 {p50:.3f} s, p99 {p99:.3f} s, longest {values[-1]:.3f} s ({len(values)} answers)"


def resident_mib(pid: int) -> dict[str, float]:
    """Returns resident memory of a process and its descendants, by pid and name."""
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    sizes = {f"{status['Name'].strip()} {pid}": int(status["VmRSS"].split()[0]) / 1024}
    for children in folder.glob("task/*/children"):
        for child in children.read_text().split():
            sizes |= resident_mib(int(child))
    return sizes
