"""Adapters for tests: sealed directories, a registry in memory, and real adapters with random
weights."""

import json
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy import URL

from guard.adapter_config import CONFIG, WEIGHTS
from guard.adapter_files import adapter_path, manifest_sha256, seal
from guard.errors import StoreUnavailable
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore, StoredAdapter
from guard.store.rollouts import RolloutCounts, StoredRollout
from guard.store.runs import RunStore
from refine.practice.recipe import MODEL_DIR

REVISION = "rev-1"


def write_adapter(
    folder: Path,
    version: int,
    *,
    revision: str = REVISION,
    rank: int = 4,
    kind: str = "LORA",
    critique: CritiqueStyle = CritiqueStyle.YES_NO,
) -> StoredAdapter:
    """Writes a sealed directory like PEFT's, and returns its entry in the registry."""
    path = adapter_path(folder, version)
    path.mkdir(parents=True)
    write_peft(path, rank=rank, kind=kind, value=version)
    seal(
        path,
        version=version,
        parent=None,
        model="practice",
        model_revision=revision,
        critique=critique,
    )
    return StoredAdapter(
        version=version,
        parent=None,
        model_revision=revision,
        sha256=manifest_sha256(path),
        status="promoted",
        created_at=datetime.now(UTC),
    )


def write_peft(
    path: Path,
    *,
    rank: int = 4,
    kind: str = "LORA",
    value: float = 1.0,
    module: str = "model.layers.0.self_attn.q_proj",
    shape: tuple[int, int] = (8, 8),
    **fields: object,
) -> None:
    """Writes PEFT's two files for one small module. shape: its inputs and outputs. fields: of the
    configuration, in addition to these."""
    config = {"peft_type": kind, "r": rank, "lora_alpha": 2 * rank, **fields}
    (path / CONFIG).write_text(json.dumps(config))
    inputs, outputs = shape
    tensors = {
        f"base_model.model.{module}.lora_A.weight": np.full((rank, inputs), value, np.float32),
        f"base_model.model.{module}.lora_B.weight": np.full((outputs, rank), value, np.float32),
    }
    save_file(tensors, path / WEIGHTS)


@dataclass
class MemoryRegistry:
    """A registry whose answers a test sets."""

    adapters: dict[int, StoredAdapter] = field(default_factory=dict)
    way: list[int | None] = field(default_factory=lambda: [None])

    async def preferred(self) -> list[int | None]:
        return self.way

    async def get(self, version: int) -> StoredAdapter | None:
        return self.adapters.get(version)

    def add(self, *adapters: StoredAdapter) -> None:
        self.adapters |= {adapter.version: adapter for adapter in adapters}


@dataclass
class MemoryRollouts:
    """Rollouts whose running one a test sets. broken: whether the database fails."""

    current: StoredRollout | None = None
    stored: RolloutCounts = RolloutCounts()
    ended: list[tuple[int, str, str]] = field(default_factory=list)
    broken: bool = False

    def begin(
        self, version: int, share: float, compared_with: int | None = None, number: int = 1
    ) -> StoredRollout:
        """Starts a rollout and returns it."""
        self.current = StoredRollout(
            id=number,
            created_at=datetime.now(UTC),
            finished_at=None,
            version=version,
            compared_with=compared_with,
            share=share,
            by="ada",
            reason="",
            status="running",
            outcome="",
            looks=0,
        )
        return self.current

    async def running(self) -> StoredRollout | None:
        return self.current

    async def add(self, _number: int, counts: RolloutCounts) -> None:
        if self.broken:
            raise StoreUnavailable("scripted")
        self.stored += counts

    async def end(self, number: int, status: str, *, by: str, outcome: str) -> bool:
        assert by
        self.ended.append((number, status, outcome))
        self.current = None
        return True


def train_nothing(path: Path, seed: int, rank: int = 8) -> Path:
    """Writes a PEFT adapter of the practice model with random weights that change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        # Else the second factor is zero and the adapter changes nothing.
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.save_pretrained(str(path))
    return path


async def publish(
    url: URL,
    folder: Path,
    trained: Path,
    revision: str,
    critique: CritiqueStyle = CritiqueStyle.YES_NO,
) -> int:
    """Seals and registers a copy of a PEFT adapter under a new number, and returns that."""
    runs, adapters = RunStore(url), AdapterStore(url)
    run = await runs.start(model="m", model_revision=revision, parent=None, seed=0, options={})
    path = adapter_path(folder, run.id)
    shutil.copytree(trained, path)
    seal(path, version=run.id, parent=None, model="m", model_revision=revision, critique=critique)
    await adapters.register(
        version=run.id, parent=None, model_revision=revision, sha256=manifest_sha256(path)
    )
    await runs.close()
    await adapters.close()
    return run.id


async def activate(url: URL, version: int | None) -> None:
    """Activates a registered adapter."""
    adapters = AdapterStore(url)
    await adapters.activate(version, by="test", reason="")
    await adapters.close()
