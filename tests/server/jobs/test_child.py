"""The refine job as a child process: its command, and that it runs as long as the server."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.jobs import child as refine_child
from server.jobs.child import KEY_VARIABLE, job_command, job_environment, supervised

APPENDS = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); "


def options(**changed: object) -> argparse.Namespace:
    defaults = {"host": None, "port": 8000, "ssl_certfile": None, "api_key": None}
    return argparse.Namespace(**{**defaults, **changed})


@pytest.mark.parametrize(
    ("changed", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 8123}, "http://127.0.0.1:8123"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"ssl_certfile": "cert.pem"}, "https://127.0.0.1:8000"),
    ],
)
def test_the_job_gets_its_servers_url(changed: dict[str, object], url: str) -> None:
    command = job_command(options(**changed), "6h")
    arguments = ["refine", "--every", "6h", "--server", url, "--parent", str(os.getpid())]
    assert command == [sys.executable, "-m", "server.cli.main", *arguments]


def test_the_job_is_given_the_servers_key_unless_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert KEY_VARIABLE not in job_environment(options())
    assert job_environment(options(api_key=["first", "second"]))[KEY_VARIABLE] == "first"
    monkeypatch.setenv(KEY_VARIABLE, "its own")
    assert job_environment(options(api_key=["first"]))[KEY_VARIABLE] == "its own"


def test_a_job_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(refine_child, "_RESTART_PAUSE_S", 0.01)
    log = tmp_path / "pids"
    command = [sys.executable, "-c", APPENDS + "sys.exit(3)", str(log)]
    with supervised(command, dict(os.environ)):
        wait_until(lambda: len(started(log)) >= 3)
    assert len(set(started(log))) >= 3


def test_the_job_ends_with_the_server(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    command = [sys.executable, "-c", APPENDS + "import signal; signal.pause()", str(log)]
    with supervised(command, dict(os.environ)):
        wait_until(lambda: started(log) != [])
    (child,) = started(log)
    assert not Path(f"/proc/{child}").exists()


def started(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
