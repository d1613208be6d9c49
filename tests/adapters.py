"""Adapters for tests: sealed directories, and a registry in memory."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from guard.adapter_files import CONFIG, WEIGHTS, adapter_path, manifest_sha256, seal
from guard.store.adapters import StoredAdapter

REVISION = "rev-1"


def write_adapter(
    folder: Path, version: int, *, revision: str = REVISION, rank: int = 4, kind: str = "LORA"
) -> StoredAdapter:
    """A sealed directory that looks like PEFT's, and what the registry would say of it."""
    path = adapter_path(folder, version)
    path.mkdir(parents=True)
    (path / CONFIG).write_text(json.dumps({"peft_type": kind, "r": rank}))
    (path / WEIGHTS).write_bytes(f"weights of {version}".encode() * 100)
    seal(path, version=version, parent=None, model="practice", revision=revision)
    return StoredAdapter(
        version=version,
        parent=None,
        model_revision=revision,
        sha256=manifest_sha256(path),
        status="promoted",
        created_at=datetime.now(UTC),
    )


@dataclass
class MemoryRegistry:
    """The registry's answers, as a test sets them."""

    adapters: dict[int, StoredAdapter] = field(default_factory=dict)
    way: list[int | None] = field(default_factory=lambda: [None])

    async def preferred(self) -> list[int | None]:
        return self.way

    async def get(self, version: int) -> StoredAdapter | None:
        return self.adapters.get(version)

    def add(self, *adapters: StoredAdapter) -> None:
        self.adapters |= {adapter.version: adapter for adapter in adapters}
