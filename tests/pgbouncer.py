"""A PgBouncer in front of the tests' own PostgreSQL, as hosts run it: each transaction gets any of
a few server connections.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.postgres import hand_over, own_folder, unprivileged_user

_PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
_PORT = 5432
_START_S = 20
_SETTINGS = """
[databases]
* = host={postgres} user=setback

[pgbouncer]
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
"""


def is_installed() -> bool:
    """Whether PgBouncer's program is there."""
    return _PROGRAM is not None


@contextmanager
def pooling(postgres: Path) -> Iterator[str]:
    """Runs PgBouncer for the server whose socket is in a folder. Yields the URL of a database that
    is called `{name}`."""
    assert _PROGRAM is not None
    with own_folder("setback-pgbouncer-") as folder:
        settings = folder / "pgbouncer.ini"
        settings.write_text(_SETTINGS.format(postgres=postgres, folder=folder, port=_PORT))
        hand_over(folder)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [_PROGRAM, str(settings)], stdout=log, stderr=log, **unprivileged_user()
            )
        try:
            _wait_for(folder / f".s.PGSQL.{_PORT}", process, folder / "log")
            yield f"postgresql://setback@/{{name}}?host={folder}&pgbouncer=true"
        finally:
            process.terminate()
            process.wait()


@contextmanager
def pooling_where_installed(postgres: Path) -> Iterator[str]:
    """As pooling(); without PgBouncer it yields PostgreSQL's own URL."""
    if is_installed():
        with pooling(postgres) as url:
            yield url
    else:
        yield f"postgresql://setback@/{{name}}?host={postgres}"


def _wait_for(path: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(str(path))
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
