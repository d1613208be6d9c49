"""Which critics may tell the gate's truth: the base alone, and the first adapter that was ever in
force on it. Owns that choice and how their calibrations are found; what a reference is, is
refine/reference.py's.
"""

from contextlib import AsyncExitStack

from guard.calibration import UNCALIBRATED
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from refine.reference import Reference
from refine.served import ServedInfo
from server.settings import Settings


async def references(settings: Settings, info: ServedInfo) -> list[Reference]:
    """The references of the served base, with their calibrations. Raises StoreUnavailable."""
    url = settings.database_url
    async with AsyncExitStack() as stack:
        adapters, calibrations = AdapterStore(url), CalibrationStore(url)
        for store in (adapters, calibrations):
            stack.push_async_callback(store.close)
        fits = await calibrations.in_force(info.model_revision)
        scales = {version: fit.calibration for version, fit in fits.items()}
        first = await adapters.first_promoted(info.model_revision)
    found = [Reference("base", scales.get(None, UNCALIBRATED))]
    if first is not None:
        found.append(Reference(first, scales.get(first, UNCALIBRATED)))
    return found
