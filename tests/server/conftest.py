"""Isolates tests from the settings in the environment and the working folder."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.databases import migrated_file
from tests.server.face import Face, open_face


@pytest.fixture
def clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder without setback.toml, and no variables that are settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("SETBACK_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    """Our HTTP routes over an empty database, open to this machine because there is no key."""
    url = await asyncio.to_thread(migrated_file, tmp_path / "face.db")
    async with open_face(url) as face:
        yield face
