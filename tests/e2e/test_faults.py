"""What happens to flags when the database, the disk or the server fails under load: none that a
client saw is lost, nothing withheld is sent, and the server goes on when the fault is over.

Run at full length with `pytest --full`; otherwise with fewer clients and rounds.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from tests.e2e.callers import Callers, calling, leaked, lost
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.e2e.listening import flags_by_request, until_idle
from tests.e2e.test_processes import wait_until_gone
from tests.ports import free_port
from tests.postgres import Postgres, missing_programs, own_folder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

Say = Callable[[str], None]
CLIENTS = 16
DISK_MIB = 4


def practice(port: int) -> list[str]:
    """The command of a server with the practice model."""
    return [SETBACK, "serve", "practice", "--port", str(port)]


@contextmanager
def serving(folder: Path, database: str) -> Iterator[Server]:
    migrate.upgrade(parse_url(database))
    with running_server(folder, database, practice) as server:
        yield server


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints the figures of a test although it passes."""

    def printed(figures: str) -> None:
        with capsys.disabled():
            print(f"\n{figures}")  # noqa: T201

    return printed


@pytest.fixture
def primary() -> Iterator[Postgres]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)} on PATH")
    with own_folder("setback-primary-") as folder:
        postgres = Postgres(folder, free_port())
        postgres.create()
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.end()


async def until_ready(server: Server, status: int) -> None:
    """Waits until /ready has that status."""
    async with asyncio.timeout(60), httpx.AsyncClient(base_url=server.base_url) as http:
        while (await http.get("/ready")).status_code != status:
            pass


async def until_nothing_runs(server: Server) -> None:
    """Waits until nothing is being answered any more."""
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as http:
        await until_idle(http)


async def check(server: Server, callers: Callers, errors: Set[int] = frozenset({503})) -> str:
    """Checks what must always hold. Returns the figures. errors: the statuses that may occur."""
    flags = await flags_by_request(server)
    flagged = sum(one.flagged for one in callers.received)
    figures = (
        f"{len(callers.received)} responses {dict(callers.statuses)}, {callers.cut_off} cut off, "
        f"{flagged} seen as flagged, {len(flags)} stored"
    )
    assert not lost(callers.received, flags), figures
    assert not leaked(callers.received, flags), figures
    assert set(callers.statuses) <= {200, *errors}, figures
    return figures


@pytest.mark.full
def test_the_database_is_killed_read_only_and_failed_over(
    primary: Postgres, tmp_path: Path, full: bool, say: Say
) -> None:
    asyncio.run(primary.create_database("faults"))
    with own_folder("setback-standby-") as folder:
        standby = primary.standby(folder, free_port())
        standby.start()
        # Otherwise a failover loses what the standby has not received yet.
        await_standby = "ALTER SYSTEM SET synchronous_standby_names = '*'"
        asyncio.run(primary.execute(await_standby, "SELECT pg_reload_conf()"))
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        database = f"postgresql://setback@{hosts}/faults?target_session_attrs=read-write"
        try:
            with serving(tmp_path, database) as server:
                figures = asyncio.run(_three_faults(server, primary, standby))
        finally:
            standby.end()
    say(f"PostgreSQL killed, read-only, failed over: {figures}")


async def _three_faults(server: Server, primary: Postgres, standby: Postgres) -> str:
    async with calling(server, CLIENTS) as callers:
        await callers.until(4)
        primary.stop()
        await callers.until(2, flagged=False, status=503)
        await until_ready(server, 503)
        primary.start()
        await callers.until(4)
        await until_ready(server, 200)

        await _set_read_only(primary, "ON")
        await callers.until(2, flagged=False, status=503)
        await _set_read_only(primary, "OFF")
        await callers.until(4)

        primary.stop()
        standby.promote()
        await callers.until(4)
        await until_ready(server, 200)
    await until_nothing_runs(server)
    return await check(server, callers)


async def _set_read_only(primary: Postgres, setting: str) -> None:
    """Does what hosting services do when a disk is nearly full."""
    await primary.execute(
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        f"ALTER SYSTEM SET default_transaction_read_only = {setting}",
        "SELECT pg_reload_conf()",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={DISK_MIB}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_is_full(small_disk: Path, tmp_path: Path, say: Say) -> None:
    with serving(tmp_path, f"sqlite:///{small_disk}/flags.db") as server:
        figures = asyncio.run(_full_disk(server, small_disk / "filler"))
    say(f"SQLite on a full disk: {figures}")


async def _full_disk(server: Server, filler: Path) -> str:
    async with calling(server, CLIENTS) as callers:
        await callers.until(4)
        _fill(filler)
        await callers.until(2, flagged=False, status=503)
        await asyncio.to_thread(filler.unlink)
        await callers.until(4)
        await until_ready(server, 200)
    await until_nothing_runs(server)
    return await check(server, callers)


def _fill(file: Path) -> None:
    """Writes until the disk is full."""
    with file.open("wb", buffering=0) as output, contextlib.suppress(OSError):
        while True:
            output.write(bytes(4096))


def test_sigterm_ends_a_server_whose_clients_wait(tmp_path: Path, say: Say) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/flags.db") as server:
        figures = asyncio.run(_ended(server, signal.SIGTERM, clients=4 * CLIENTS, flags=4))
    say(f"SIGTERM with {4 * CLIENTS} clients: {figures}")


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def test_no_flag_is_lost_by_kill_9(
    backend: str, tmp_path: Path, full: bool, say: Say, request: pytest.FixtureRequest
) -> None:
    database = f"sqlite:///{tmp_path}/flags.db"
    if backend == "postgresql":
        postgres: Postgres = request.getfixturevalue("primary")
        asyncio.run(postgres.create_database("killed"))
        database = f"postgresql://setback@127.0.0.1:{postgres.port}/killed"
    rng, rounds = random.Random(backend), 50 if full else 1
    for _ in range(rounds):
        with serving(tmp_path, database) as server:
            figures = asyncio.run(_ended(server, signal.SIGKILL, CLIENTS, rng.randint(1, 12)))
    say(f"kill -9, {backend}, {rounds} rounds; the last: {figures}")


async def _ended(server: Server, how: signal.Signals, clients: int, flags: int) -> str:
    """Ends the server by a signal once clients have seen some flags, while all of them wait."""
    async with calling(server, clients) as callers:
        await callers.until(flags)
        begun = time.monotonic()
        os.kill(server.pid, how)
        # Within 30 seconds.
        await asyncio.to_thread(wait_until_gone, server.pid)
        seconds = time.monotonic() - begun
    # vLLM answers 500 to what it can no longer begin.
    return f"gone after {seconds:.1f} s; {await check(server, callers, {500, 503})}"
