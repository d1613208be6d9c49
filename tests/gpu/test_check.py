"""The GPU check itself, as far as it goes without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.gpu.parts import PARTS

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

OPTIONS = "--vllm=--max-model-len 1024 --kv-cache-memory-bytes 256M"


def test_every_part_ends_with_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.check", str(tmp_path), "--dry-run", OPTIONS]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    results = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in PARTS}
    assert results["serve"]["chunks"] > 1
    assert results["price"]["cells"]
    assert results["session"]["cells"]
    assert not results["swaps"]["failures"]
    assert len(results["swaps"]["by_adapter"]) == 4
    assert results["training"]["status"] == 0
    assert len(results["verdicts"]["harms"]) == 200


def test_a_part_that_fails_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    # Without the model, which no part has written, no server starts.
    command = [sys.executable, "-m", "tests.gpu.check", str(tmp_path), "--dry-run"]
    parts = ["--part", "serve", "--part", "machine"]
    done = subprocess.run([*command, *parts], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == 1
    assert "error" in json.loads((tmp_path / "serve.json").read_text())
    assert json.loads((tmp_path / "machine.json").read_text())["vllm"]
