"""Settings come from the environment and the working folder: tests get an empty one of each."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, without setback.toml and without variables that set anything."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("SETBACK_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return tmp_path
