"""The refine job as a child process of `setback serve --refine-every`. Owns its command, restarts
and end. Does not do the job itself (refine.py) or start single runs on demand (run_control.py).
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_log = logging.getLogger("vllm.setback")
_RESTART_PAUSE_S = 5.0
_TERMINATE_TIMEOUT_S = 30.0
_WILDCARD_HOSTS = ("", "0.0.0.0", "::", None)
KEY_VARIABLE = "SETBACK_REFINE_API_KEY"


def job_command(options: argparse.Namespace, every: str | None) -> list[str]:
    """Returns the command of the job for a server with these options; one run without `every`."""
    scheme = "https" if options.ssl_certfile else "http"
    host = "127.0.0.1" if options.host in _WILDCARD_HOSTS else options.host
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{options.port}"
    pause = ["--every", every] if every is not None else []
    job = ["refine", *pause, "--server", url, "--parent", str(os.getpid())]
    return [sys.executable, "-m", "server.cli.main", *job]


def job_environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the job's environment: the server's, with its API key if it has one."""
    environment = dict(os.environ)
    if options.api_key:
        environment.setdefault(KEY_VARIABLE, options.api_key[0])
    return environment


@contextmanager
def supervised(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """Runs the command during the block, restarts it whenever it ends, and stops it afterwards."""
    supervisor = _Supervisor(command, environment)
    supervisor.start()
    try:
        yield
    finally:
        supervisor.end()


class _Supervisor(threading.Thread):
    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(name="setback-refine", daemon=True)
        self._command = command
        self._environment = environment
        self._ended = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                if self._ended.is_set():
                    return
                self._child = subprocess.Popen(self._command, env=self._environment)
            code = self._child.wait()
            if not self._ended.is_set():
                _log.warning("The refine job ended with exit code %d and is started again", code)
            self._ended.wait(_RESTART_PAUSE_S)

    def end(self) -> None:
        """Terminates the child process, and kills it if it does not end in time."""
        self._ended.set()
        with self._lock:
            child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(_TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
