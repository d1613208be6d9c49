"""Whole servers in their own processes, with the practice model and the real openai client."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import URL

from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.world import Kind, requests
from tests import pgbouncer
from tests.e2e.forked import Forked
from tests.e2e.plants import JSON_SCHEMA, compact_json
from tests.ports import free_port
from tests.postgres import Postgres

ROOT = Path(__file__).parents[2]
SETBACK = str(Path(sys.executable).with_name("setback"))
START_UP_S = 300
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""One thread of a server computes, on any processor. Several would wait for each other's work, and
busily, while other tests use their processors."""
ALL_THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "auto"}
"""As servers run outside the tests."""
BLOCK_ALL = '[default]\nthreshold = 0.0\naction = "block"\n'


@dataclass(frozen=True)
class Server:
    """A running server, its database and its log."""

    base_url: str
    database: URL
    log: Path
    pid: int

    def http(self) -> httpx.Client:
        """A plain HTTP client."""
        return httpx.Client(base_url=self.base_url, timeout=120)

    def openai(self) -> openai.OpenAI:
        """OpenAI's client without retries, so that every call is one request."""
        return openai.OpenAI(
            base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=120
        )


@contextmanager
def running_server(
    folder: Path,
    database: str,
    command: Callable[[int], list[str]],
    environment: Mapping[str, str] | None = None,
    *,
    ready: str = "/ready",
    port: int | None = None,
) -> Iterator[Server]:
    """Runs the server that `command` starts on a port, from ready to stopped. port: any free one
    if it is left out."""
    url = parse_url(database)
    port, log = port or free_port(), folder / "server.log"
    # `make test ARGS=...` would hand its arguments on to `make serve`.
    prefixes = ("SETBACK_", "VLLM_", "OTEL_", "MAKE", "MFLAGS", "ARGS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    settings = {"DATABASE_URL": database, **ONE_THREAD, **(environment or {})}
    process = _started(command(port), clean | settings, log)
    try:
        server = Server(f"http://127.0.0.1:{port}", url, log, process.pid)
        wait_until_ready(server, process, ready)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def _started(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> "Forked | subprocess.Popen[bytes]":
    """Starts a command. Forks `setback`, unless the command chooses the log format: vLLM reads that
    when it is imported."""
    if command[0] == SETBACK and "--log-format" not in command:
        return Forked(command[1:], environment, ROOT, log)
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def wait_until_ready(
    server: Server, process: "Forked | subprocess.Popen[bytes]", path: str = "/ready"
) -> None:
    """Polls the server. Fails with the end of its log when it dies or is too slow."""
    deadline = time.monotonic() + START_UP_S
    with httpx.Client() as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(server.base_url + path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The practice model as `make serve` starts it, with the default policy and SQLite. Slow
    machines get enough time to finish a revision."""
    folder = tmp_path_factory.mktemp("server")
    # A test locks the file until the server gives up.
    database = f"sqlite:///{folder}/flags.db?timeout=8"
    with running_server(
        folder,
        database,
        lambda port: ["make", "serve", "MODEL=practice", f"PORT={port}"],
        environment={"SETBACK_REVISION_TIMEOUT_S": "120"},
    ) as it:
        yield it


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 with the shipped adapter, as a new user's first start serves it, with its weights
    converted."""
    folder = tmp_path_factory.mktemp("smollm2")
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    with running_server(
        folder,
        database,
        lambda port: [SETBACK, "serve", "--port", str(port)],
        environment={"SETBACK_MODELS_DIR": str(folder / "models")},
    ) as it:
        yield it


@pytest.fixture(scope="session")
def strict_server(
    tmp_path_factory: pytest.TempPathFactory, postgres_socket: Path
) -> Iterator[Server]:
    """Withholds every answer; two API-server processes on PostgreSQL, behind PgBouncer where that
    is installed."""
    folder = tmp_path_factory.mktemp("strict")
    policy = folder / "policy.toml"
    policy.write_text(BLOCK_ALL)
    asyncio.run(Postgres(postgres_socket).create_database("strict"))
    options = ["--policy-file", str(policy), "--api-server-count", "2"]
    with pgbouncer.pooling_where_installed(postgres_socket) as url:
        database = url.format(name="strict")
        migrate.upgrade(parse_url(database))
        with running_server(
            folder,
            database,
            lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
        ) as it:
            yield it


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's client for the default server."""
    with server.openai() as client:
        yield client


def _first(client: openai.OpenAI, kind: Kind, *, withheld: bool, **fields: Any) -> str:
    """Returns the first training request of `kind` whose (greedy) answer is withheld, or passes."""
    for request in requests(kind, "train", 60):
        content = str(request.messages[-1]["content"])
        answer = client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            **fields,
        )
        if (answer.moderation is not None) == withheld:
            return content
    pytest.fail(f"none of 60 answers to {kind} requests was withheld={withheld}")


@pytest.fixture(scope="session")
def harmful(client: openai.OpenAI) -> str:
    """A request whose draft is withheld."""
    return _first(client, Kind.HARMFUL, withheld=True)


@pytest.fixture(scope="session")
def everyday(client: openai.OpenAI) -> str:
    """A request whose answer passes."""
    return _first(client, Kind.EVERYDAY, withheld=False)


@pytest.fixture(scope="session")
def flagged_json(client: openai.OpenAI) -> str:
    """A request whose answer is withheld also in JSON."""
    json_fields: dict[str, Any] = {
        "response_format": JSON_SCHEMA,
        "max_tokens": 120,
        "extra_body": compact_json(),
    }
    return _first(client, Kind.HARMFUL, withheld=True, **json_fields)


@pytest.fixture
def metric(server: Server) -> Callable[[str], float]:
    """Returns the sum of the samples in /metrics whose line begins with `name`."""
    return lambda name: read_metric(server, name)


def read_metric(server: Server, name: str) -> float:
    """Returns the sum of the samples whose line begins with `name`."""
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def full(pytestconfig: pytest.Config) -> bool:
    """Whether long tests run at full length."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture
def pictures(pytestconfig: pytest.Config) -> Path | None:
    """The folder for pictures of pages, if they were requested."""
    folder: Path | None = pytestconfig.getoption("--pictures")
    return folder


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the default server without a limit of connections."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120, limits=limits) as client:
        yield client
