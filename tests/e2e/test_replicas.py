"""Two replicas behind HAProxy on one PostgreSQL: keys, limits, adapters, flags and runs are theirs
together, and one that is killed is missed by nobody."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from guard.store import migrate
from guard.store.keys import KeyStore, Role
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind
from tests import haproxy
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.e2e.fleet import served_by, wait_for
from tests.e2e.loop import ask
from tests.e2e.refine_access import model_revision
from tests.e2e.test_processes import children, wait_until_gone
from tests.ports import free_port
from tests.postgres import Postgres

pytestmark = [pytest.mark.e2e, pytest.mark.full]

LIMIT = 6
CHAT = "/v1/chat/completions"
REQUEST = [{"role": "user", "content": "Can you help me press white flowers?"}]


@dataclass
class Fleet:
    """Two replicas, by port, and the proxy before them. keys: a secret of each role."""

    folder: Path
    database: str
    ports: tuple[int, int]
    proxy: str = ""
    keys: dict[Role, str] = field(default_factory=dict)
    servers: dict[int, Server] = field(default_factory=dict)

    def start(self, port: int) -> AbstractContextManager[Server]:
        """Starts a replica."""
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        options = ["--adapters-dir", str(self.folder / "adapters"), "--adapter-poll-s", "0.2"]
        command = [SETBACK, "serve", "practice", "--port", str(port), *options]
        environment = {"SETBACK_REFINE_WORK_DIR": str(self.folder / "refine")}
        return running_server(folder, self.database, lambda _: command, environment, port=port)

    def client(self, role: Role = "admin") -> httpx.Client:
        """A client of the proxy whose every request may reach the other replica."""
        return httpx.Client(
            base_url=self.proxy,
            headers={"authorization": f"Bearer {self.keys[role]}"},
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=120,
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, postgres_socket: Path) -> Iterator[Fleet]:
    if not haproxy.is_installed():
        pytest.skip("HAProxy is not installed")
    folder = tmp_path_factory.mktemp("fleet")
    asyncio.run(Postgres(postgres_socket).create_database("fleet"))
    fleet = Fleet(
        folder, f"postgresql://setback@/fleet?host={postgres_socket}", (free_port(), free_port())
    )
    url = parse_url(fleet.database)
    migrate.upgrade(url)
    fleet.keys = {"admin": key(url, "admin"), "call": key(url, "call", LIMIT)}
    with ExitStack() as stack:
        for port in fleet.ports:
            fleet.servers[port] = stack.enter_context(fleet.start(port))
        fleet.proxy = stack.enter_context(haproxy.balancing(folder, free_port(), fleet.ports))
        yield fleet


def key(url: URL, role: Role, requests_per_minute: int | None = None) -> str:
    """Creates a key and returns its secret."""

    async def make(store: KeyStore) -> str:
        _, secret = await store.make(
            role, role, by="a test", requests_per_minute=requests_per_minute
        )
        return secret

    return ask(KeyStore(url), make)


def chat(client: httpx.Client, messages: Any = REQUEST, **fields: Any) -> httpx.Response:
    body = {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 16, **fields}
    return client.post(CHAT, json=body)


def adapter_of(client: httpx.Client) -> str:
    """The adapter that answers."""
    return str(chat(client).headers["x-setback-adapter"])


def wait_for_adapter(client: httpx.Client, name: str) -> None:
    wait_for(lambda: adapter_of(client) == name)


def test_a_keys_limit_counts_what_both_answered(fleet: Fleet) -> None:
    # The window of a minute may turn over once between the requests.
    with fleet.client("call") as client:
        statuses = Counter(chat(client).status_code for _ in range(4 * LIMIT))
    assert set(statuses) == {200, 429}
    assert LIMIT <= statuses[200] <= 2 * LIMIT
    with httpx.Client(base_url=fleet.proxy) as nobody:
        assert chat(nobody).status_code == 401


def test_an_adapter_comes_into_force_in_both(fleet: Fleet) -> None:
    one = fleet.servers[fleet.ports[0]]
    headers = {"authorization": f"Bearer {fleet.keys['admin']}"}
    revision = asyncio.run(model_revision(one))
    trained = train_nothing(fleet.folder / "trained", seed=1)
    version = asyncio.run(publish(one.database, fleet.folder / "adapters", trained, revision))
    asyncio.run(activate(one.database, version))
    for port in fleet.ports:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
            wait_for_adapter(client, f"setback-{version}")
    with fleet.client() as client:
        wait_for(lambda: served_by(client) == [version, version])
    asyncio.run(activate(one.database, None))


def test_flags_of_both_are_in_one_database(fleet: Fleet) -> None:
    requests = [list(one.messages) for one in draw_traffic(Kind.HARMFUL, 16, seed=5)]
    flagged = set()
    with fleet.client() as client:
        wait_for(lambda: {adapter_of(client) for _ in range(4)} == {"base"})
        for messages in requests:
            answer = chat(client, messages, max_tokens=64).json()
            if answer.get("moderation"):
                flagged.add(answer["id"])
    stored = ask(
        ReviewStore(parse_url(fleet.database)), lambda store: store.page(Filter(), limit=1000)
    )
    assert flagged
    assert flagged <= {flag.request_id for flag in stored}
    for server in fleet.servers.values():
        assert CHAT in server.log.read_text()


def test_one_run_at_a_time_is_started_and_cancelled_through_either(fleet: Fleet) -> None:
    with fleet.client() as client:
        started = client.post("/v1/guard/runs")
        assert started.status_code == 200, started.text
        run = started.json()["id"]
        assert client.post("/v1/guard/runs").status_code == 409
        assert client.post("/v1/guard/runs").status_code == 409
        client.post(f"/v1/guard/runs/{run}/cancel")
        wait_for(
            lambda: client.get(f"/v1/guard/runs/{run}").json()["status"] in ("cancelled", "too_few")
        )


def test_a_killed_replica_is_missed_by_nobody(fleet: Fleet) -> None:
    killed, _ = fleet.ports
    server = fleet.servers[killed]
    with fleet.client() as client:
        processes = children(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        # The engine has the server's socket until it ends.
        for process in processes:
            wait_until_gone(process)
        assert {chat(client).status_code for _ in range(12)} == {200}
        with fleet.start(killed) as again:
            wait_for(lambda: chat(client).is_success and CHAT in again.log.read_text())
        assert {chat(client).status_code for _ in range(4)} == {200}
