"""One server for all tests of the refine loop: traffic, reviews, runs and adapters.

Answers about which the critic is unsure are flagged too, so that reviewers have something to
dismiss.

Runs are small unless pytest is called with `--full`; then they have the defaults of `setback
refine`.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from guard.errors import LeaseHeld
from guard.store import migrate
from guard.store.adapters import AdapterStore
from guard.store.flags import StoredFlag
from guard.store.keys import KeyStore, Role
from guard.store.leases import Leases
from guard.store.review import Filter, ReviewStore
from guard.store.runs import RunStore, StoredRun
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.pairs import recipe_answer
from refine.practice.traffic import draw_traffic, send
from refine.practice.world import Kind, Request
from refine.schedule import LEASE
from refine.stages.dataset import EXAMPLES, Example, read_examples
from tests.e2e.conftest import ROOT, SETBACK, Server, running_server

T = TypeVar("T")

CYCLE_S = 1200
SUSPICIOUS = '[default]\nthreshold = 0.1\naction = "revise"\n'
TRAFFIC = {
    True: ((Kind.HARMFUL, 160), (Kind.EVERYDAY, 30)),
    False: ((Kind.HARMFUL, 40), (Kind.EVERYDAY, 8)),
}
"""At full length, and small."""
SMALL_RUN = {
    "SETBACK_REFINE_REPLAY": "30",
    "SETBACK_REFINE_EPOCHS": "0.3",
    "SETBACK_REFINE_GATE_MARGIN": "0.2",
}
"""Goes through every stage, and learns too little for the gate to be sure to let it pass. A wide
margin needs few cases."""

MEANS = ("a marked deck", "the reading club")
"""Of harm that the base's critic is of two minds about, and that reviewers here find fine."""


def disputed(n: int, seed: int) -> list[Request]:
    """Returns requests about which the critic is unsure."""
    drawn = draw_traffic(Kind.HARMFUL, 40 * n, seed)
    return [request for request in drawn if request.task and request.task.means in MEANS][:n]


DISPUTED = disputed(10, seed=3)


@dataclass(frozen=True)
class Loop:
    """A server with keys and with flags from some traffic. secrets: a key of each role.

    environment: of the server and of the jobs. traffic: how many requests of each kind were sent.
    """

    server: Server
    folder: Path
    secrets: dict[Role, str]
    environment: dict[str, str]
    traffic: Sequence[tuple[Kind, int]]

    @property
    def admin(self) -> dict[str, str]:
        """The admin's authorization header."""
        return {"authorization": f"Bearer {self.secrets['admin']}"}

    def job(self) -> "subprocess.Popen[bytes]":
        """The command `setback refine` with its environment."""
        with (self.folder / "job.log").open("ab") as log:
            environment = os.environ | self.environment
            environment |= {"SETBACK_REFINE_SERVER_URL": self.server.base_url}
            return subprocess.Popen(
                [SETBACK, "refine"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def refine(self) -> StoredRun:
        """Runs one cycle to its end and returns its record."""
        with self.job() as job:
            with suppress(subprocess.TimeoutExpired):
                job.wait(CYCLE_S)
            ended = job.poll()
            job.kill()
        assert ended == 0, (self.folder / "job.log").read_text()
        return self.runs()[0]

    def kill_in(self, stage: str) -> None:
        """Starts the job and kills it when the run reaches `stage`."""
        job = self.job()

        async def reached(store: RunStore) -> None:
            deadline = time.monotonic() + CYCLE_S
            while time.monotonic() < deadline:
                newest = await store.list(1)
                if newest and newest[0].stage == stage:
                    return
                assert job.poll() is None, (self.folder / "job.log").read_text()
                # Some stages of a small run are over in a few hundredths of a second.
                await asyncio.sleep(0.005)

        ask(RunStore(self.server.database), reached)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        self.wait_until_free()

    def wait_until_free(self) -> None:
        """Waits until a dead job's lease has expired."""

        async def take(leases: Leases) -> None:
            deadline = time.monotonic() + 60
            while True:
                try:
                    token = await leases.acquire(LEASE, "a test", 1)
                    break
                except LeaseHeld:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
            await leases.release(LEASE, token)

        ask(Leases(self.server.database), take)

    def wait_until_locked(self) -> None:
        """Waits until the server requires keys and knows the newest one."""
        deadline = time.monotonic() + 60
        with self.server.http() as http:
            while time.monotonic() < deadline:
                responses = [
                    http.get("/v1/guard/runs", headers=shown) for shown in ({}, self.admin)
                ]
                if [answer.status_code for answer in responses] == [401, 200]:
                    return
                time.sleep(0.1)
        pytest.fail("no key was asked for within a minute")

    def wait_until_served(self, adapter: str) -> None:
        """Waits until answers come from that adapter."""
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello."}]}
        deadline = time.monotonic() + 60
        with self.server.http() as http:
            while time.monotonic() < deadline:
                answer = http.post("/v1/chat/completions", json=body, headers=self.admin)
                if answer.headers["x-setback-adapter"] == adapter:
                    return
                time.sleep(0.1)
        pytest.fail(f"{adapter} was not served within a minute")

    def promote(self, run: StoredRun) -> None:
        """Promotes a run's adapter whatever the gate decided, and counts its flags as used."""

        async def put_in_force(adapters: AdapterStore) -> None:
            await adapters.set_status(run.id, "candidate")
            await adapters.activate(run.id, by="a test", reason="whatever the gate said")

        ask(AdapterStore(self.server.database), put_in_force)
        results = {"measures": run.measures, "reasons": run.reasons}
        ask(
            RunStore(self.server.database),
            lambda store: store.finish(run.id, "promoted", **results),
        )

    def runs(self) -> list[StoredRun]:
        """Returns the runs, newest first."""
        return ask(RunStore(self.server.database), lambda store: store.list(100))

    def flags(self, **conditions: Any) -> list[StoredFlag]:
        """Returns at most a thousand flags, newest first."""
        return ask(ReviewStore(self.server.database), lambda s: s.page(Filter(**conditions), 1000))

    def examples(self, run: int) -> list[Example]:
        """Returns the training examples of a run."""
        return read_examples(self.folder / "refine" / f"run-{run:04d}" / "dataset" / EXAMPLES)

    def dismiss_false_alarms(self) -> None:
        """Labels flags as reviewers who know the ground truth would, except those in `fine`."""
        requests = [
            request for kind, n in self.traffic for request in draw_traffic(kind, n, seed=1)
        ]
        fine = {
            str(request.messages[-1]["content"])
            for request in [*requests, *DISPUTED]
            if request.kind is not Kind.HARMFUL or (request.task and request.task.means in MEANS)
        }
        self.label(
            [flag for flag in self.flags() if flag.messages[-1]["content"] in fine],
            review="dismissed",
        )

    def label(self, flags: Sequence[StoredFlag], **fields: str) -> None:
        """Labels all of them alike, over HTTP."""
        with self.server.http() as http:
            body = {"ids": [flag.id for flag in flags], **fields}
            done = http.post("/v1/guard/flags/label", json=body, headers=self.admin)
        assert done.status_code == 200, done.text

    def harms(self, requests: Sequence[Request]) -> list[float]:
        """Returns the active model's harm for the answers that do what is asked."""
        with self.server.http() as http:
            http.headers.update(self.admin)
            return [_harm(http, request) for request in requests]


def _harm(http: httpx.Client, request: Request) -> float:
    turns = [*request.messages, {"role": "assistant", "content": recipe_answer(request)}]
    judged = http.post("/v1/moderations", json={"messages": turns}).json()
    return float(sum(judged["results"][0]["category_scores"].values()))


def ask(store: Any, question: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Queries a store and closes it."""

    async def answered() -> T:
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(answered())


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Loop]:
    """Each test continues with the server as the previous one left it."""
    folder = tmp_path_factory.mktemp("loop")
    environment = _environment(folder)
    full = bool(pytestconfig.getoption("--full"))
    if not full:
        environment |= SMALL_RUN
    migrate.upgrade(parse_url(environment["DATABASE_URL"]))
    (folder / "policy.toml").write_text(SUSPICIOUS)
    with running_server(
        folder,
        environment["DATABASE_URL"],
        lambda port: [SETBACK, "serve", "practice", "--port", str(port)],
        environment=environment,
    ) as server:
        for kind, number in TRAFFIC[full]:
            send(f"{server.base_url}/v1", kind, number, seed=1)
        with server.http() as http:
            for request in DISPUTED:
                body = {"model": MODEL_NAME, "messages": list(request.messages), "temperature": 0}
                assert http.post("/v1/chat/completions", json=body).status_code == 200
        roles: tuple[Role, ...] = ("review", "admin")
        secrets = {role: _key(server, role) for role in roles}
        turning = Loop(server, folder, secrets, environment, TRAFFIC[full])
        turning.wait_until_locked()
        yield turning


def _environment(folder: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": f"sqlite:///{folder}/flags.db",
        "SETBACK_ADAPTERS_DIR": str(folder / "adapters"),
        "SETBACK_ADAPTER_POLL_S": "0.2",
        "SETBACK_POLICY_FILE": str(folder / "policy.toml"),
        "SETBACK_REFINE_LEASE_S": "1",
        "SETBACK_REFINE_WORK_DIR": str(folder / "refine"),
    }


def _key(server: Server, role: Role) -> str:
    async def make(store: KeyStore) -> str:
        _, secret = await store.make(f"for {role}", role, by="a test")
        return secret

    return ask(KeyStore(server.database), make)
