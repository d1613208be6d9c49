"""The whole loop against a real server: traffic, flags, a cycle that is killed in every stage and
goes on, the swap, and what stops a poisoned run.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guard.errors import LeaseHeld
from guard.policy import Action
from guard.store import migrate
from guard.store.adapters import AdapterStore
from guard.store.database import parse_url
from guard.store.flags import Flag, FlagStore, Review
from guard.store.leases import Leases
from guard.store.review import Label, ReviewStore
from guard.store.runs import RunStore, StoredRun
from refine.practice.pairs import recipe_answer
from refine.practice.traffic import asked, send
from refine.practice.world import Kind
from refine.schedule import LEASE
from tests.e2e.conftest import ROOT, SETBACK, Server, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

STAGES = ("collect", "analyse", "dataset", "train", "gate", "promote")
DEADLINE_S = 600
LIGHT = {
    "epochs": 1,
    "replay": 450,
    "variations": 1,
    "learning_rate": 1e-3,
    "held_out_share": 0.5,
}
"""Minutes less than the defaults, and enough to be better than the base on many held-out flags."""


@dataclass(frozen=True)
class Loop:
    """A server with its folder, and the refine job's environment."""

    server: Server
    folder: Path

    def job(self, **options: object) -> "subprocess.Popen[bytes]":
        """`setback refine`, with settings of the refine table."""
        told = {f"SETBACK_REFINE_{name.upper()}": str(value) for name, value in options.items()}
        fixed = {
            "DATABASE_URL": f"sqlite:///{self.folder}/flags.db",
            "SETBACK_ADAPTERS_DIR": str(self.folder / "adapters"),
            "SETBACK_REFINE_SERVER_URL": self.server.base_url,
            "SETBACK_REFINE_WORK_DIR": str(self.folder / "refine"),
            "SETBACK_REFINE_LEASE_S": "1",
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SETBACK_")}
        with (self.folder / "job.log").open("ab") as log:
            return subprocess.Popen(
                [SETBACK, "refine"], cwd=ROOT, env=clean | fixed | told, stdout=log, stderr=log
            )

    def refine(self, **options: object) -> StoredRun:
        """One cycle, to its end; its record."""
        with self.job(**options) as job:
            with suppress(subprocess.TimeoutExpired):
                job.wait(DEADLINE_S)
            ended = job.poll()
            job.kill()
        assert ended == 0, (self.folder / "job.log").read_text()
        return self.runs()[0]

    def runs(self) -> list[StoredRun]:
        """All runs, newest first."""

        async def read() -> list[StoredRun]:
            store = RunStore(self.server.database)
            found = await store.list(100)
            await store.close()
            return found

        return asyncio.run(read())

    def active(self) -> int | None:
        """What the registry says is in force."""

        async def read() -> int | None:
            store = AdapterStore(self.server.database)
            found = await store.active()
            await store.close()
            return found

        return asyncio.run(read())


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("refine")
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    options = ["--adapters-dir", str(folder / "adapters"), "--adapter-poll-s", "0.2"]
    with running_server(
        folder, database, lambda port: [SETBACK, "serve", "--port", str(port), *options]
    ) as server:
        yield Loop(server, folder)


def kill_in(loop: Loop, stage: str) -> None:
    """Starts the job and kills it outright once the run has come to `stage`."""
    job = loop.job(**LIGHT)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = loop.runs()
        if found and found[0].stage == stage:
            break
        assert job.poll() is None, (loop.folder / "job.log").read_text()
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    wait_until_free(loop)


def wait_until_free(loop: Loop) -> None:
    """Until the dead job's lease has run out."""

    async def taken() -> None:
        leases = Leases(loop.server.database)
        deadline = time.monotonic() + 60
        while True:
            try:
                token = await leases.acquire(LEASE, "a test", 1)
                break
            except LeaseHeld:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        await leases.release(LEASE, token)
        await leases.close()

    asyncio.run(taken())


def test_a_cycle_killed_in_every_stage_ends_promoted_and_served(loop: Loop) -> None:
    assert send(f"{loop.server.base_url}/v1", Kind.HARMFUL, 160, seed=1, without=["violence"]) > 40
    for stage in STAGES:
        kill_in(loop, stage)
    # The last stage is short: the job may have ended before it could be killed.
    run = loop.runs()[0]
    run = loop.refine(**LIGHT) if run.status == "running" else run
    assert (run.status, len(loop.runs())) == ("promoted", 1), run.reasons
    assert loop.active() == run.id
    wait_until_served(loop, f"setback-{run.id}")
    # Nothing is learned twice: what was learned from is not collected again.
    again = loop.refine(**LIGHT)
    assert again.status == "too_few"
    assert again.counts["learn"] == 0


def wait_until_served(loop: Loop, adapter: str) -> None:
    deadline = time.monotonic() + 60
    body = {"model": "setback-practice", "messages": [{"role": "user", "content": "Hello."}]}
    with loop.server.http() as http:
        while time.monotonic() < deadline:
            answer = http.post("/v1/chat/completions", json=body)
            if answer.headers["x-setback-adapter"] == adapter:
                return
            time.sleep(0.1)
    pytest.fail(f"{adapter} was not served within a minute")


def write_flags(loop: Loop, flags: list[Flag], review: Review | None = None) -> None:
    """As if the server had flagged them, and a reviewer had looked at them."""

    async def write() -> None:
        store, reviews = FlagStore(loop.server.database), ReviewStore(loop.server.database)
        numbers = [await store.add(flag) for flag in flags]
        if review is not None:
            await reviews.label(numbers, Label(review=review), "a reviewer")
        await reviews.close()
        await store.close()

    asyncio.run(write())


def flagged(flag: Flag, kind: Kind, n: int, seed: int) -> list[Flag]:
    """Requests of a kind with the answers that do what they ask, as flags of users of their own."""
    return [
        replace(
            flag,
            request_id=f"{kind} {seed} {number}",
            messages=list(request.messages),
            answer=recipe_answer(request),
            categories=("violence",),
            action=Action.BLOCK,
            user_hash=f"{kind} {number // 8}",
        )
        for number, request in enumerate(asked(kind, n, seed))
    ]


def test_one_user_with_false_flags_is_stopped_by_the_cap(loop: Loop, flag: Flag) -> None:
    mixed = [*flagged(flag, Kind.EVERYDAY, 80, seed=5), *flagged(flag, Kind.HARMFUL, 20, seed=5)]
    write_flags(loop, [replace(each, user_hash="one user") for each in mixed])
    run = loop.refine()
    assert run.status == "too_few"
    assert "over the cap of 20 flags of one user: " in run.reasons[0]
