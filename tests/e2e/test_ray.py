"""Two guarded replicas on a local Ray: an adapter comes into force in both, and the flags of both
are in one database. Needs requirements/ray.txt."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from guard.store import migrate
from guard.store.keys import KeyStore
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.recipe import MODEL_DIR
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind
from server.launch.ray_serve import guarded_deployment
from server.launch.revision import folder_revision
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import ROOT
from tests.e2e.fleet import served_by, wait_for
from tests.e2e.loop import ask
from tests.ports import free_port
from tests.postgres import Postgres

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.full,
    pytest.mark.timeout(900),
    # Ray's own, of its imports.
    pytest.mark.filterwarnings("ignore"),
]

CHAT = "/v1/chat/completions"
REPLICAS = 2


@dataclass(frozen=True)
class Deployed:
    """A deployment on Ray. url: of Ray's proxy. key: an admin's."""

    url: str
    database: URL
    key: str
    adapters: Path

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=120
        )


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, postgres_socket: Path) -> Iterator[Deployed]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray import serve

    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    asyncio.run(Postgres(postgres_socket).create_database("ray"))
    database = f"postgresql://setback@/ray?host={postgres_socket}"
    url = parse_url(database)
    migrate.upgrade(url)
    # Replicas without a key do not start.
    secret = key(url)
    environment = {
        "DATABASE_URL": database,
        "SETBACK_ADAPTERS_DIR": str(folder / "adapters"),
        "SETBACK_ADAPTER_POLL_S": "0.2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        # A process of Ray's has threads, which a fork would break.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        runtime_env={"env_vars": environment},
        _temp_dir=str(Path("/tmp") / f"ray-{os.getpid()}"),
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        app = guarded_deployment(
            ["practice"], num_replicas=REPLICAS, ray_actor_options={"num_cpus": 1}
        )
        serve.run(app.bind(), name="guarded")
        yield Deployed(f"http://127.0.0.1:{port}", url, secret, folder / "adapters")
    finally:
        serve.shutdown()
        ray.shutdown()


def key(database: URL) -> str:
    async def make(store: KeyStore) -> str:
        return (await store.make("admin", "admin", by="a test"))[1]

    return ask(KeyStore(database), make)


def chat(client: httpx.Client, messages: Any, **fields: Any) -> httpx.Response:
    body = {"model": MODEL_NAME, "messages": messages, "temperature": 0, **fields}
    return client.post(CHAT, json=body)


def test_the_proxy_needs_a_key(deployed: Deployed) -> None:
    with httpx.Client(base_url=deployed.url, timeout=120) as nobody:
        assert chat(nobody, [{"role": "user", "content": "Hello."}]).status_code == 401
    with deployed.client() as client:
        wait_for(lambda: served_by(client) == [None] * REPLICAS)


def test_flagged_answers_of_both_replicas_are_withheld_and_stored(deployed: Deployed) -> None:
    requests = [list(one.messages) for one in draw_traffic(Kind.HARMFUL, 24, seed=5)]
    block = {"model": MODEL_NAME, "policy": {"output": {"mode": "block"}}}
    flagged = set()
    with deployed.client() as client:
        for messages in requests:
            answer = chat(client, messages, max_tokens=64, moderation=block).json()
            if answer["choices"][0]["finish_reason"] == "content_filter":
                flagged.add(answer["id"])
        streamed = chat(client, requests[0], stream=True, max_tokens=64).text
    stored = ask(ReviewStore(deployed.database), lambda store: store.page(Filter(), limit=1000))
    assert flagged
    assert flagged <= {flag.request_id for flag in stored}
    assert streamed.rstrip().endswith("data: [DONE]")
    assert not any(flag.answer[-24:] in streamed for flag in stored if flag.answer)


def test_an_adapter_comes_into_force_in_both(deployed: Deployed, tmp_path: Path) -> None:
    trained = train_nothing(tmp_path / "trained", seed=1)
    revision = folder_revision(MODEL_DIR)
    version = asyncio.run(publish(deployed.database, deployed.adapters, trained, revision))
    asyncio.run(activate(deployed.database, version))
    with deployed.client() as client:
        wait_for(lambda: served_by(client) == [version] * REPLICAS)
        names = {
            chat(client, [{"role": "user", "content": "Hello."}]).headers["x-setback-adapter"]
            for _ in range(8)
        }
    assert names == {f"setback-{version}"}
