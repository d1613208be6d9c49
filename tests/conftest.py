"""Fixtures for all tests: migrated databases of both kinds, and a flag."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL
from xdist.scheduler import LoadScopeScheduling

from guard.policy import Action
from guard.store import migrate
from guard.store.adapters import AdapterStore
from guard.store.flags import Flag, FlagStore
from guard.store.review import ReviewStore
from guard.store.url import parse_url
from tests.databases import migrated_file
from tests.postgres import Postgres, missing_programs, own_folder

# Searching what imports and collecting create for garbage takes a fifth of their time.
gc.disable()

pytest_plugins = ["tests.scripted", "tests.e2e.loop"]

_OWN_SERVERS = (
    "test_adapters.py",
    "test_console.py",
    "test_equality.py",
    "test_faults.py",
    "test_parallel.py",
    "test_plain_vllm.py",
    "test_processes.py",
    "test_replicas.py",
    "test_rollouts.py",
    "test_signals.py",
    "test_swap_under_load.py",
)
"""Files in tests/e2e/ whose tests need none of the servers that others start."""
_SERVERS = "servers"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: run the long tests at full length, as their published figures were taken: load, a
    training with default settings, public data, a comparison with bare vLLM. `--pictures`: save
    pictures of the console's pages."""
    parser.addoption("--full", action="store_true", help="the long proofs at full length")
    parser.addoption("--pictures", type=Path, help="a folder for pictures of the console")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--full`, the tests marked `full` are skipped. Where several processes share the
    tests, the longest files come first, so that none is left for one of them at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="a long proof: pass --full"))


def _place(item: pytest.Item) -> tuple[bool, bool, bool]:
    """First the tests that share servers, then those with their own, the slow ones, and others."""
    marks = {mark.name for mark in item.iter_markers()}
    return (_scope(item.nodeid) != _SERVERS, "e2e" not in marks, "slow" not in marks)


def _scope(nodeid: str) -> str:
    """What one process runs whole: a file, except that files whose tests share servers stay
    together."""
    file = nodeid.partition("::")[0]
    for folder in ("tests/families/", "tests/e2e/policies/"):
        if file.startswith(folder):
            return folder
    if file.startswith("tests/e2e/") and not file.endswith(_OWN_SERVERS):
        return _SERVERS
    return file


def pytest_collection_finish() -> None:
    """The garbage collector leaves out what was imported and collected."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries in C++ would report what is never collected as leaks."""
    gc.unfreeze()


class FilesAndServers(LoadScopeScheduling):  # type: ignore[misc]  # It has no types.
    """How several processes share the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndServers:
    """See pytest-xdist, which would start with the files of most tests."""
    config.option.loadscopereorder = False
    return FilesAndServers(config, log)


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    """The socket folder of our own PostgreSQL server, which no network can reach."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)} on PATH")
    with own_folder("setback-postgres-") as folder:
        postgres = Postgres(folder)
        postgres.create()
        postgres.start()
        try:
            yield folder
        finally:
            postgres.stop()


@pytest.fixture(scope="session")
def migrated_postgres(postgres_socket: Path) -> str:
    """The name of a migrated PostgreSQL database, for others to be copied from."""
    name = "migrated"
    asyncio.run(Postgres(postgres_socket).create_database(name))
    migrate.upgrade(parse_url(_postgres_url(name, postgres_socket)))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database; a test that uses it runs on both."""
    kind: str = request.param
    return kind


@pytest.fixture
def empty_database(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/made/setback.db"
    socket, name = request.getfixturevalue("postgres_socket"), tmp_path.name.lower()
    asyncio.run(Postgres(socket).create_database(name))
    return _postgres_url(name, socket)


@pytest.fixture
def database(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """A migrated database of each kind."""
    if backend == "sqlite":
        return migrated_file(tmp_path / "made" / "setback.db")
    socket, name = request.getfixturevalue("postgres_socket"), tmp_path.name.lower()
    template = request.getfixturevalue("migrated_postgres")
    asyncio.run(Postgres(socket).create_database(name, template))
    return parse_url(_postgres_url(name, socket))


def _postgres_url(name: str, socket: Path) -> str:
    return f"postgresql://setback@/{name}?host={socket}"


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
