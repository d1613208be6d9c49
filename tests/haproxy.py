"""An HAProxy in front of several servers, as teams put one: it asks `/ready` and leaves out what is
not ready."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

_PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/bin")
_START_S = 20
_SETTINGS = """
defaults
    mode http
    timeout connect 5s
    timeout check 5s
    timeout client 120s
    timeout server 120s
    retries 3
    option redispatch

frontend clients
    bind 127.0.0.1:{port}
    default_backend replicas

backend replicas
    balance roundrobin
    option httpchk GET /ready
    http-check expect status 200
    default-server check inter 500ms fall 2 rise 1
{servers}
"""


def is_installed() -> bool:
    """Whether HAProxy's program is there."""
    return _PROGRAM is not None


@contextmanager
def balancing(folder: Path, port: int, servers: Sequence[int]) -> Iterator[str]:
    """Runs HAProxy on a port, for servers on loopback. Yields its URL once one of them is ready."""
    assert _PROGRAM is not None
    lines = (f"    server replica-{one} 127.0.0.1:{one}" for one in servers)
    settings = folder / "haproxy.cfg"
    settings.write_text(_SETTINGS.format(port=port, servers="\n".join(lines)))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([_PROGRAM, "-f", str(settings)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, folder / "haproxy.log")
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
