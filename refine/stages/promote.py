"""Stage 6: from a trained adapter to one that servers use. Owns publishing (seal, rename,
upload, then register as a candidate), promotion and rejection. Does not decide (gate.py) or load
adapters: servers follow the registry (guard/adapters.py).
"""

import asyncio
import os
import shutil
from pathlib import Path

from guard.adapter_files import adapter_path, manifest_sha256, seal
from guard.adapter_folder import AdapterFolder
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.runs import StoredRun
from refine.served import Server

_MAX_ACTIVATIONS = 1000


async def publish(
    adapters: AdapterStore,
    folder: AdapterFolder,
    trained: Path,
    run: StoredRun,
    critique: CritiqueStyle,
) -> None:
    """Makes the trained adapter, numbered after its run, a candidate that servers can load.

    folder: of published adapters. trained: PEFT's directory, which is copied. critique: the
    critique style it was trained in. Safe to repeat: a directory that was renamed into place before
    a kill is registered as it is.
    """
    final = adapter_path(folder.path, run.id)
    if not final.is_dir():
        temporary = final.with_name(f".{final.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(trained, temporary)
        seal(
            temporary,
            version=run.id,
            parent=run.parent,
            model=run.model,
            model_revision=run.model_revision,
            critique=critique,
        )
        os.replace(temporary, final)
    await asyncio.to_thread(folder.upload, run.id)
    await adapters.register(
        version=run.id,
        parent=run.parent,
        model_revision=run.model_revision,
        sha256=manifest_sha256(final),
    )


async def promote(adapters: AdapterStore, run: StoredRun) -> None:
    """Activates the run's adapter, once: not again after it was rolled back."""
    by = f"run {run.id}"
    history = await adapters.history(_MAX_ACTIVATIONS)
    if not any(activation.by == by for activation in history):
        await adapters.activate(run.id, by=by, reason="passed the gate")


async def reject(adapters: AdapterStore, model: Server, run: StoredRun) -> None:
    """Marks the run's adapter as rejected and unloads it from the server."""
    await adapters.set_status(run.id, "rejected")
    await model.unload(run.id)
