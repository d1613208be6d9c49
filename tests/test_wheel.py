"""The wheel contains all that the command needs, so that it works without the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "guard", "refine", "migrations")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents, built from a copy since building leaves files."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "source" / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "source", check=True)
    (wheel,) = folder.glob("setback-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_packages(installed: Path) -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(ROOT)).is_file()


def test_the_command_migrates_a_database(installed: Path, tmp_path: Path) -> None:
    code = "import sys; from server.cli import main; print(main.__file__); main.app(sys.argv[1:])"
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "SETBACK_DATABASE_URL": "sqlite:///made/setback.db",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "db", "upgrade"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in done.stdout
    assert (tmp_path / "made" / "setback.db").stat().st_size > 0
