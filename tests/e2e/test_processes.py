"""A server whose processes are killed leaves no process behind. Its threads are those of servers
outside the tests."""

import contextlib
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from tests.e2e.conftest import ALL_THREADS, SETBACK, running_server

pytestmark = pytest.mark.e2e

END_S = 30


def children(pid: int) -> list[int]:
    """Returns the processes it started that still exist."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in paths for child in path.read_text().split()]


def wait_until_gone(pid: int) -> None:
    """Waits until all threads of that process have ended, whether or not its parent reaped it.

    A killed process's first thread may end while others still hold its sockets.
    """
    deadline = time.monotonic() + END_S
    while any(state != "Z" for state in thread_states(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def thread_states(pid: int) -> list[str]:
    """Returns one letter per thread, as in `/proc`; none for a process that is gone."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append(path.read_text().rpartition(")")[2].split()[0])
    return states


@pytest.mark.parametrize("killed", ["server", pytest.param("engine", marks=pytest.mark.full)])
def test_the_engine_and_the_server_end_with_each_other(tmp_path: Path, killed: str) -> None:
    database = f"sqlite:///{tmp_path}/flags.db"
    migrate.upgrade(parse_url(database))
    with running_server(
        tmp_path,
        database,
        lambda port: [SETBACK, "serve", "practice", "--port", str(port)],
        environment=ALL_THREADS,
    ) as server:
        (engine,) = children(server.pid)
        os.kill(server.pid if killed == "server" else engine, signal.SIGKILL)
        wait_until_gone(engine)
        wait_until_gone(server.pid)
        with pytest.raises(httpx.ConnectError), server.http() as http:
            http.get("/health")
