"""Stage 6: from a trained adapter to one that servers take. Owns publishing (sealed, renamed into
place, registered as a candidate) and putting it in force or away. Does not judge it (gate.py), and
does not load it: servers watch the registry (guard/adapters.py).
"""

import os
import shutil
from pathlib import Path

from guard.adapter_files import adapter_path, manifest_sha256, seal
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.runs import StoredRun
from refine.served import Server

_HISTORY = 1000


async def publish(
    adapters: AdapterStore, folder: Path, trained: Path, run: StoredRun, critique: CritiqueStyle
) -> None:
    """Makes the trained adapter, numbered after its run, a candidate that servers can load.

    folder: where adapters live. trained: PEFT's directory, which stays as it is. critique: the
    style in which it learned to be asked for verdicts. Safe to repeat: what was renamed into place
    before a kill is registered as it lies there.
    """
    final = adapter_path(folder, run.id)
    if not final.is_dir():
        part = final.with_name(f".{final.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(trained, part)
        seal(
            part,
            version=run.id,
            parent=run.parent,
            model=run.model,
            revision=run.model_revision,
            critique=critique,
        )
        os.replace(part, final)
    await adapters.register(
        version=run.id,
        parent=run.parent,
        model_revision=run.model_revision,
        sha256=manifest_sha256(final),
    )


async def promote(adapters: AdapterStore, run: StoredRun) -> None:
    """Puts the run's adapter in force, once: not again after somebody rolled it back."""
    by = f"run {run.id}"
    history = await adapters.history(_HISTORY)
    if not any(entry.by == by for entry in history):
        await adapters.activate(run.id, by=by, reason="passed the gate")


async def reject(adapters: AdapterStore, model: Server, run: StoredRun) -> None:
    """Marks the run's adapter as rejected and takes it out of the server's memory."""
    await adapters.set_status(run.id, "rejected")
    await model.unload(run.id)
