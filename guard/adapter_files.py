"""Adapters on disk: numbered directories that a manifest seals and that never change afterwards.
Owns the manifest and the check that a directory is the one that was registered. Does not know what
PEFT's files may contain (adapter_config.py), the engine (adapters.py) or the registry
(store/adapters.py).

A sealed directory holds PEFT's adapter_config.json and adapter_model.safetensors, optionally a
README.md, and manifest.json with the SHA-256 of each.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guard.adapter_config import CONFIG, WEIGHTS, Shapes, check_adapter
from guard.errors import AdapterRefused
from guard.prompts import CritiqueStyle

MANIFEST = "manifest.json"
# No file type that can run code when it is loaded, as pickled weights can.
_ALLOWED = frozenset({CONFIG, WEIGHTS, "README.md"})


@dataclass(frozen=True)
class AdapterManifest:
    """What an adapter is and which files it has.

    version, run: its number and the run that made it. parent: the adapter it was trained from.
    model, model_revision: the base model it fits. rank: its largest LoRA rank.
    critique: the critique style it was trained with.
    created_at: ISO 8601, UTC. files: SHA-256 in hex by file name, except the manifest.
    """

    version: int
    parent: int | None
    run: int
    model: str
    model_revision: str
    rank: int
    created_at: str
    files: Mapping[str, str]
    critique: CritiqueStyle = CritiqueStyle.YES_NO


def adapter_path(folder: Path, version: int) -> Path:
    """Returns the directory of an adapter in `folder`."""
    return folder / f"{version:04d}"


def manifest_sha256(path: Path) -> str:
    """Returns the manifest's SHA-256 in hex, which the registry stores."""
    return _sha256(path / MANIFEST)


def seal(
    path: Path,
    *,
    version: int,
    parent: int | None,
    model: str,
    model_revision: str,
    critique: CritiqueStyle = CritiqueStyle.YES_NO,
) -> AdapterManifest:
    """Writes the manifest of the PEFT adapter in `path`. All files are on disk on return.

    Rename the directory to adapter_path() afterwards, so that no partial adapter appears there.
    Raises AdapterRefused when the directory holds any other file, or an adapter that the engine
    would not apply as PEFT does.
    """
    name = f"Adapter {version} in {path}"
    files = _files(path, name) - {MANIFEST}
    if unexpected := sorted(files - _ALLOWED):
        raise AdapterRefused(
            f"{name} holds {unexpected[0]}, which is no part of a safe LoRA adapter"
        )
    if missing := sorted({CONFIG, WEIGHTS} - files):
        raise AdapterRefused(f"{name}: {missing[0]} is missing")
    manifest = AdapterManifest(
        version=version,
        parent=parent,
        run=version,
        model=model,
        model_revision=model_revision,
        rank=check_adapter(path, name),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={file: _sha256(path / file) for file in sorted(files)},
        critique=critique,
    )
    (path / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", "utf-8")
    for flushed in (*(path / file for file in (*files, MANIFEST)), path):
        _flush(flushed)
    return manifest


def verify(
    path: Path,
    *,
    version: int,
    sha256: str,
    model_revision: str,
    max_rank: int,
    base: Shapes | None = None,
) -> AdapterManifest:
    """Returns the manifest of the adapter in `path`, after checking every file against it.

    sha256: the manifest's hash, from the registry. model_revision: of the served base model.
    base: that model's modules, if known.
    Raises AdapterRefused, which names the adapter and what is wrong. Reads all files: call it in a
    thread.
    """
    name = f"Adapter {version} in {path}"
    manifest = check_sealed(path, version=version, sha256=sha256)
    if manifest.model_revision != model_revision:
        raise AdapterRefused(
            f"{name} was made for revision {manifest.model_revision} of {manifest.model}; "
            f"this server's model is at revision {model_revision}"
        )
    rank = check_adapter(path, name, base)
    if rank > max_rank:
        raise AdapterRefused(
            f"{name} has rank {rank}; the server takes up to {max_rank}, see --max-lora-rank"
        )
    return manifest


def check_sealed(path: Path, *, version: int, sha256: str) -> AdapterManifest:
    """Returns the manifest of the adapter in `path`, after checking that every file is as it was
    when its manifest was registered. Raises AdapterRefused. Reads all files: call it in a thread.
    """
    name = f"Adapter {version} in {path}"
    if not path.is_dir():
        raise AdapterRefused(f"{name} is missing")
    files = _files(path, name)
    if MANIFEST not in files or _sha256(path / MANIFEST) != sha256:
        raise AdapterRefused(f"{name}: {MANIFEST} is missing or not the one that was registered")
    manifest = _read(path, name)
    if manifest.version != version:
        raise AdapterRefused(f"{name} says that it is adapter {manifest.version}")
    _check_files(path, name, files - {MANIFEST}, manifest.files)
    return manifest


def _files(path: Path, name: str) -> set[str]:
    """Returns the names of the directory's files. Raises AdapterRefused for links and folders."""
    names = set()
    for entry in path.iterdir():
        if entry.is_symlink() or not entry.is_file():
            raise AdapterRefused(f"{name}: {entry.name} is not a plain file")
        names.add(entry.name)
    return names


def _check_files(path: Path, name: str, files: set[str], sealed: Mapping[str, str]) -> None:
    for file in sorted(files | sealed.keys() | {CONFIG, WEIGHTS}):
        if file not in files:
            raise AdapterRefused(f"{name}: {file} is missing")
        if file not in sealed or file not in _ALLOWED:
            raise AdapterRefused(f"{name}: {file} does not belong there")
        if _sha256(path / file) != sealed[file]:
            raise AdapterRefused(f"{name}: {file} was altered after it was registered")


def _read(path: Path, name: str) -> AdapterManifest:
    try:
        fields = _object(path / MANIFEST)
        style = CritiqueStyle(fields.pop("critique", CritiqueStyle.YES_NO))
        return AdapterManifest(**fields, critique=style)
    except (ValueError, TypeError) as error:
        raise AdapterRefused(f"{name}: {MANIFEST} cannot be read: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file, or a directory's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
