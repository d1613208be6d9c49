"""The refine job as a child of `setback serve --refine-every`. Owns its command, its restarts and
its end; what it does is refine.py's. Single runs on demand are run_control.py's.
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
_END_S = 30.0
_ANY_HOST = ("", "0.0.0.0", "::", None)
KEY_VARIABLE = "SETBACK_REFINE_API_KEY"


def job_command(options: argparse.Namespace, every: str | None) -> list[str]:
    """What starts the job for a server with these options; without `every`, for one run."""
    scheme = "https" if options.ssl_certfile else "http"
    host = "127.0.0.1" if options.host in _ANY_HOST else options.host
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{options.port}"
    pause = ["--every", every] if every is not None else []
    job = ["refine", *pause, "--server", url, "--parent", str(os.getpid())]
    return [sys.executable, "-m", "server.cli.main", *job]


def job_environment(options: argparse.Namespace) -> dict[str, str]:
    """The job's environment: the server's, with its API key when it has one."""
    environment = dict(os.environ)
    if options.api_key:
        environment.setdefault(KEY_VARIABLE, options.api_key[0])
    return environment


@contextmanager
def kept_running(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """Runs the command beside the block, again whenever it ends, and ends it with the block."""
    keeper = _Keeper(command, environment)
    keeper.start()
    try:
        yield
    finally:
        keeper.end()


class _Keeper(threading.Thread):
    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(name="setback-refine", daemon=True)
        self._command = command
        self._environment = environment
        self._ended = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def run(self) -> None:
        while not self._ended.is_set():
            with self._turn:
                if self._ended.is_set():
                    return
                self._child = subprocess.Popen(self._command, env=self._environment)
            code = self._child.wait()
            if not self._ended.is_set():
                _log.warning("The refine job ended with exit code %d and is started again", code)
            self._ended.wait(_RESTART_PAUSE_S)

    def end(self) -> None:
        """Asks the child to end, and makes it when it does not."""
        self._ended.set()
        with self._turn:
            child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
