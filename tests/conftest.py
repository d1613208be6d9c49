"""Fixtures for all tests: migrated databases of both kinds, and a flag."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL

from guard.policy import Action
from guard.store import migrate
from guard.store.adapters import AdapterStore
from guard.store.flags import Flag, FlagStore
from guard.store.review import ReviewStore
from guard.store.url import parse_url

pytest_plugins = ["tests.scripted", "tests.e2e.loop"]

POSTGRES_PROGRAMS = ("initdb", "pg_ctl", "postgres")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: run the long tests at full length, as their published figures were taken: load, a
    training with default settings, public data, a comparison with bare vLLM. `--pictures`: save
    pictures of the console's pages."""
    parser.addoption("--full", action="store_true", help="the long proofs at full length")
    parser.addoption("--pictures", type=Path, help="a folder for pictures of the console")


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    """The socket folder of our own PostgreSQL server, which no network can reach."""
    missing = [name for name in POSTGRES_PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)} on PATH")
    # Not under pytest's folder: that is closed to the user PostgreSQL has to run as.
    folder = Path(tempfile.mkdtemp(prefix="setback-postgres-", dir="/tmp"))
    try:
        with _postgres(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _postgres(folder: Path) -> Iterator[None]:
    # PostgreSQL refuses to run as root.
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(*command: str) -> None:
        # To a file: a pipe would stay open in the server that pg_ctl leaves running.
        with open(folder / "log", "a+b") as log:
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False, **user)
            log.seek(0)
            assert done.returncode == 0, f"{command}: {log.read().decode()}"

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "setback", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=100"
    run("pg_ctl", "-D", data, "-w", "-o", options, "start")
    try:
        yield
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; a test that uses it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/made/setback.db"
    socket = request.getfixturevalue("postgres_socket")
    name = tmp_path.name.lower()
    asyncio.run(create_database(socket, name))
    return f"postgresql://setback@/{name}?host={socket}"


async def create_database(socket: Path, name: str) -> None:
    connection = await asyncpg.connect(host=str(socket), user="setback", database="postgres")
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()


@pytest.fixture
def database(empty_database: str) -> URL:
    """A migrated database of each kind."""
    url = parse_url(empty_database)
    migrate.upgrade(url)
    return url


@pytest.fixture
async def store(database: URL) -> AsyncIterator[FlagStore]:
    """An open flag store on each kind of database."""
    store = FlagStore(database)
    yield store
    await store.close()


@pytest.fixture
async def adapters(database: URL) -> AsyncIterator[AdapterStore]:
    """The adapter registry in the same database."""
    adapters = AdapterStore(database)
    yield adapters
    await adapters.close()


@pytest.fixture
async def reviews(database: URL) -> AsyncIterator[ReviewStore]:
    """The review store in the same database."""
    reviews = ReviewStore(database)
    yield reviews
    await reviews.close()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The guard's finished spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("guard.traces._tracer", provider.get_tracer("tests"))
    return exporter


@pytest.fixture
def flag() -> Flag:
    """A blocked answer; tests vary it with dataclasses.replace."""
    return Flag(
        request_id="chatcmpl-1",
        route="/v1/chat/completions",
        choice=0,
        messages=[{"role": "user", "content": "How do I harm the garden gnome?"}],
        answer="First, you take the gnome.",
        harm=0.93,
        category_scores={"violence": 0.6, "hate/threatening": 0.33},
        categories=("hate/threatening", "violence"),
        action=Action.BLOCK,
        adapter="base",
        model="practice",
        model_revision="1",
        policy_hash="0123456789abcdef",
        prompt_version="1",
        user_hash=None,
    )
