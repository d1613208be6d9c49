"""The CPU image: its steps run in clean roots, and its command and its health check as its user."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.images import PROGRAMS, Image, build

ROOT = Path(__file__).parents[1]
BUILD_TOOLS = ("cc", "c++", "make", "git")

missing = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make roots"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build(ROOT / "deploy/Dockerfile", ROOT, "cpu", tmp_path_factory.mktemp("image"))


def test_it_has_no_build_tools_and_is_not_privileged(image: Image) -> None:
    script = f"id -u; command -v {' '.join(BUILD_TOOLS)} || true"
    printed = subprocess.run(image.enter("sh", "-c", script), capture_output=True, check=True)
    assert printed.stdout == b"10001\n"


def test_it_serves_and_is_healthy(image: Image) -> None:
    setback = shlex.join(image.entrypoint)
    script = f"""
        {setback} db upgrade
        {setback} keys make ops --role admin
        {setback} {shlex.join(image.command)} & server=$!
        until {shlex.join(image.healthcheck)} 2>/dev/null; do kill -0 $server; sleep 1; done
        echo healthy
        kill $server
        wait $server || true
    """
    done = subprocess.run(
        image.enter("sh", "-ec", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "healthy" in done.stdout
