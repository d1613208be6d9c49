"""Installs the adapter that ships with a model, at its first start on a database. Owns the
installation. docs/align.md says how the adapter was made; the refine loop replaces it later.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from guard.adapter_folder import AdapterFolder
from guard.calibration import Scales
from guard.errors import LeaseHeld
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.leases import Leases, this_process
from guard.store.runs import RunStore, StoredRun
from refine.stages.promote import promote, publish

_LEASE = "shipped adapter"
_LEASE_S = 60.0
_BY = "setback serve"


@dataclass(frozen=True)
class ShippedAdapter:
    """folder: PEFT's files. critique: its critique style. scales: fitted on `rows` labelled
    examples.
    """

    folder: Path
    critique: CritiqueStyle
    scales: Scales
    rows: int


async def install(
    shipped: ShippedAdapter,
    *,
    model: str,
    model_revision: str,
    database_url: URL,
    folder: AdapterFolder,
) -> bool:
    """Registers and activates the adapter. Returns whether it did.

    Does nothing if the database has any adapter of that model revision, even a rejected or rolled
    back one. model: the base model's name.
    Raises StoreUnavailable.
    """
    leases = Leases(database_url)
    adapters, runs = AdapterStore(database_url), RunStore(database_url)
    calibrations = CalibrationStore(database_url)
    async with AsyncExitStack() as stack:
        for store in (leases, adapters, runs, calibrations):
            stack.push_async_callback(store.close)
        try:
            token = await leases.acquire(_LEASE, this_process(), _LEASE_S)
        except LeaseHeld:
            # Another server on this database installs it; this one follows the registry.
            return False
        stack.push_async_callback(leases.release, _LEASE, token)
        run = await _installation_run(adapters, runs, model, model_revision)
        if run is None:
            return False
        await publish(adapters, folder, shipped.folder, run, shipped.critique)
        await calibrations.add(
            adapter=run.id,
            model_revision=model_revision,
            scales=shipped.scales,
            rows=shipped.rows,
            by=_BY,
        )
        await promote(adapters, run)
        await runs.finish(run.id, "promoted", reasons=["shipped with Setback"])
        return True


async def _installation_run(
    adapters: AdapterStore, runs: RunStore, model: str, model_revision: str
) -> StoredRun | None:
    """Returns the run of an interrupted or a new installation, or None if none is needed."""
    run = await runs.unfinished("shipped")
    if run is not None and run.model_revision == model_revision:
        return run
    if any(adapter.model_revision == model_revision for adapter in await adapters.list()):
        return None
    return await runs.start(
        model=model,
        model_revision=model_revision,
        parent=None,
        seed=0,
        options={},
        stage="promote",
        source="shipped",
    )
