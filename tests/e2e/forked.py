"""Starts `setback` in a fork of a process that has imported vLLM, which takes longer than all else
of a server's start. Owns that process (multiprocessing's fork server). Tests of how a server starts
run the command itself.
"""

import atexit
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.e2e.imported"])


class Forked:
    """A started command, with the part of subprocess.Popen's interface that tests use."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        self._process = _FORKS.Process(
            target=_run, args=(list(arguments), dict(environment), folder, log)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._process.terminate()

    def wait(self, timeout: float) -> int:
        """Returns its exit status. Raises TimeoutError after `timeout` seconds."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise TimeoutError(f"still running after {timeout} s")
        return status


def _run(arguments: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["setback", *arguments]
    from server.cli.main import app

    try:
        app(arguments)
    finally:
        # Skipped by multiprocessing.
        atexit._run_exitfuncs()
