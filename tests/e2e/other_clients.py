"""Runs the scripts in clients/, each a client of the server as its users have it, in environments
of their own. Owns how they are called; what must come out is the tests' matter.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import ROOT, Server

SCRIPTS = ROOT / "tests/e2e/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
NODE_STAMP = SCRIPTS / "node_modules/.installed"
LITELLM_OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Otherwise LiteLLM fetches a list of prices whenever it is imported."""
_TIMEOUT_S = 500

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One call of a script. extra: what the client is told to add to the request's body."""

    call: str
    server: Server
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the call as the scripts read it."""
        return {
            "call": self.call,
            "base_url": f"{self.server.base_url}/v1",
            "model": MODEL_NAME,
            "text": self.text,
            "extra": dict(self.extra),
        }


def client_python() -> Path:
    """Returns the Python of the clients' environment. Skips the test if there is none."""
    if not PYTHON.exists():
        pytest.skip("there is no .venv-clients; `make test` makes it")
    return PYTHON


def run_script(name: str, calls: Sequence[Asked]) -> list[Outcome]:
    """Returns what the script's user gets from each call, in order."""
    done = subprocess.run(
        [*_interpreter(name), str(SCRIPTS / name)],
        input=json.dumps([one.as_json() for one in calls]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env={**os.environ, **LITELLM_OFFLINE},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes: list[Outcome] = json.loads(done.stdout)
    return outcomes


def _interpreter(script: str) -> list[str]:
    if not script.endswith(".mjs"):
        return [str(client_python())]
    node = shutil.which("node")
    if node is None or not NODE_STAMP.exists():
        pytest.skip("the AI SDK is not installed; `make test` installs it where there is npm")
    return [node]
