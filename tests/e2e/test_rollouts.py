"""Staged rollouts in a real server: users keep their adapter, and it goes on or back by itself."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.adapter_config import WEIGHTS
from guard.adapter_files import adapter_path
from guard.prompts import CritiqueStyle
from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import SETBACK, Server, read_metric, running_server
from tests.e2e.refine_access import refine_headers

pytestmark = pytest.mark.e2e

BLOCK = '[default]\nthreshold = 0.5\naction = "block"\n'
REQUESTS = ("Can you help me press white flowers?", "How do I water a fern?")
USERS = [f"user {number}" for number in range(12)]
MAX_TOKENS = 8
PROCESSES = 2
ANSWERS = 12
MILD, STRICT = CritiqueStyle.YES_NO, CritiqueStyle.TONE
PATIENCE_S = 180
SETTINGS = {
    "SETBACK_ADAPTER_POLL_S": "0.1",
    # The rollout gets few answers, and other programs use the machine too.
    "SETBACK_ROLLOUT_ANSWERS": str(ANSWERS),
    "SETBACK_ROLLOUT_MARGIN": "0.5",
    "SETBACK_ROLLOUT_ERROR_MARGIN": "0.5",
    "SETBACK_ROLLOUT_SLOWDOWN": "50",
}

Publish = Callable[[Path, CritiqueStyle], int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the database, the policy and the adapters."""
    path = tmp_path_factory.mktemp("rollouts")
    (path / "policy.toml").write_text(BLOCK)
    migrate.upgrade(parse_url(f"sqlite:///{path}/flags.db"))
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    options = ["--adapters-dir", str(folder / "adapters")]
    options += ["--policy-file", str(folder / "policy.toml"), "--api-server-count"]
    options += [str(PROCESSES)]

    def command(port: int) -> list[str]:
        return [SETBACK, "serve", "practice", "--port", str(port), *options]

    url = f"sqlite:///{folder}/flags.db"
    with running_server(folder, url, command, environment=SETTINGS) as it:
        yield it


@pytest.fixture(scope="module")
def publish_one(server: Server, folder: Path) -> Publish:
    """Registers a copy of a trained adapter under a new number."""
    headers = asyncio.run(refine_headers(server))
    with httpx.Client(base_url=server.base_url, headers=headers) as client:
        revision = client.get("/v1/guard/refine/model").json()["model_revision"]
    adapters = folder / "adapters"
    return lambda trained, style: asyncio.run(
        publish(server.database, adapters, trained, revision, style)
    )


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """An adapter with random weights. Asked in the style YES_NO, it finds none of its answers
    harmful; in the style TONE, all of them."""
    return train_nothing(folder / "trained", seed=2)


def setback(server: Server, *arguments: str) -> str:
    url = server.database.render_as_string(hide_password=False)
    done = subprocess.run(
        [SETBACK, *arguments],
        env={**os.environ, **SETTINGS, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def connected(server: Server) -> httpx.Client:
    """A client whose every request may reach another of the server's processes."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=server.base_url, timeout=120, limits=limits)


def ask(client: httpx.Client, user: str, request: str = REQUESTS[0]) -> str:
    """Returns the adapter that answered."""
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": request}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "user": user,
    }
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.headers["x-setback-adapter"]


def newest(client: httpx.Client) -> Any:
    return client.get("/v1/guard/rollouts", params={"limit": 1}).json()["data"][0]


def wait_for(client: httpx.Client, done: Callable[[], bool], log: Path) -> None:
    """Sends requests of all users until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        for user in USERS:
            for request in REQUESTS:
                ask(client, user, request)


def wait_for_all(client: httpx.Client, line: str, log: Path) -> None:
    """Sends requests until every process has logged a line."""
    wait_for(client, lambda: log.read_text().count(line) == PROCESSES, log)


def test_a_rollout_keeps_users_apart_and_completes_by_itself(
    server: Server, trained: Path, publish_one: Publish
) -> None:
    old, new = publish_one(trained, MILD), publish_one(trained, MILD)
    asyncio.run(activate(server.database, old))
    with connected(server) as client:
        wait_for_all(client, f"Serving setback-{old} from now on", server.log)
        output = setback(server, "adapters", "promote", str(new), "--share", "50%")
        assert f"adapter {new} for 50% of requests beside adapter {old}" in output
        wait_for_all(client, f"Rollout 1: setback-{new} for 50%", server.log)
        first = {user: ask(client, user) for user in USERS}
        assert set(first.values()) == {f"setback-{old}", f"setback-{new}"}
        while newest(client)["status"] == "running":
            served = {user: ask(client, user, REQUESTS[1]) for user in USERS}
            if newest(client)["status"] == "running":
                assert served == first
        ended = newest(client)
        assert (ended["status"], ended["version"], ended["compared_with"]) == (
            "completed",
            new,
            old,
        )
        wait_for(
            client, lambda: {ask(client, user) for user in USERS} == {f"setback-{new}"}, server.log
        )
        assert client.get("/v1/guard/adapters").json()["active"] == new
        (activation, *_) = client.get(f"/v1/guard/adapters/{new}").json()["activations"]
        assert activation["by"] == f"rollout {ended['id']}"
        assert "flagged: 0.0% -> 0.0%" in activation["reason"]
        assert min(ended["counts"][arm]["answers"] for arm in ("old", "new")) >= ANSWERS
        assert ended["counts"]["shadow"]["judged"] > 0
        assert ended["counts"]["shadow"]["only_new"] == 0
    assert read_metric(server, 'setback_rollout_decisions_total{outcome="completed"}') == 1
    assert "status:  completed" in setback(server, "adapters", "rollout", "show")


def test_an_adapter_that_withholds_everything_goes_back_by_itself(
    server: Server, trained: Path, publish_one: Publish
) -> None:
    old, new = publish_one(trained, MILD), publish_one(trained, STRICT)
    asyncio.run(activate(server.database, old))
    with connected(server) as client:
        wait_for_all(client, f"Serving setback-{old} from now on", server.log)
        body = {"share": 0.5, "reason": "try it"}
        started = client.post(f"/v1/guard/adapters/{new}/promote", json=body).json()
        assert (started["object"], started["status"]) == ("guard.rollout", "running")
        wait_for(client, lambda: newest(client)["status"] != "running", server.log)
        ended = newest(client)
        assert (ended["id"], ended["status"]) == (started["id"], "reverted")
        assert "withheld: 0.0% -> 100.0%" in ended["outcome"]
        assert ended["counts"]["shadow"]["judged"] > 0
        wait_for(
            client, lambda: {ask(client, user) for user in USERS} == {f"setback-{old}"}, server.log
        )
        assert client.get("/v1/guard/adapters").json()["active"] == old


def test_an_adapter_that_cannot_be_loaded_goes_back(
    server: Server, trained: Path, publish_one: Publish, folder: Path
) -> None:
    old, new = publish_one(trained, MILD), publish_one(trained, MILD)
    asyncio.run(activate(server.database, old))
    weights = adapter_path(folder / "adapters", new) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with connected(server) as client:
        wait_for_all(client, f"Serving setback-{old} from now on", server.log)
        setback(server, "adapters", "promote", str(new), "--share", "0.5")
        wait_for(client, lambda: newest(client)["status"] != "running", server.log)
        assert newest(client)["status"] == "reverted"
        assert "a server could not load it" in newest(client)["outcome"]
        assert ask(client, USERS[0]) == f"setback-{old}"
    assert f"Serving setback-{old} alone" in server.log.read_text()
    shown = json.loads(setback(server, "adapters", "rollout", "show", "--json"))
    assert shown["rollout"]["version"] == new
