"""How the bench ends its servers."""

import signal
import subprocess
import sys

import psutil
import pytest

from server.bench import measure


def test_a_server_that_misses_the_signal_is_killed_with_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_STOP_S", 0.1)
    deaf = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        measure._stop(server)
    assert server.returncode == -signal.SIGKILL
    # The engine has lost its parent, so whoever adopts it takes its exit status.
    assert not psutil.pid_exists(engine) or psutil.Process(engine).status() == "zombie"
