"""The adapters of the served base as critics, each on its scale, and which of them may tell the
gate's truth: the base alone, and the first adapter that was ever in force on it. Owns that choice
and how their calibrations are found.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from guard.calibration import UNCALIBRATED, Calibration
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from refine.critic import Critic
from refine.served import Adapter, ServedInfo
from server.settings import Settings


@dataclass(frozen=True)
class KnownCritics:
    """scales: by adapter, of the base alone by None. first: the first that was ever in force."""

    scales: Mapping[int | None, Calibration]
    first: int | None

    def of(self, adapter: Adapter) -> Critic:
        """The adapter on its scale; name the active one by its version."""
        version = adapter if isinstance(adapter, int) else None
        return Critic(adapter, self.scales.get(version, UNCALIBRATED))

    @property
    def references(self) -> list[Critic]:
        """Those that no run changes."""
        base = self.of("base")
        return [base] if self.first is None else [base, self.of(self.first)]


async def known_critics(settings: Settings, info: ServedInfo) -> KnownCritics:
    """Those of the served base. Raises StoreUnavailable."""
    url = settings.database_url
    async with AsyncExitStack() as stack:
        adapters, calibrations = AdapterStore(url), CalibrationStore(url)
        for store in (adapters, calibrations):
            stack.push_async_callback(store.close)
        fits = await calibrations.in_force(info.model_revision)
        scales = {version: fit.calibration for version, fit in fits.items()}
        return KnownCritics(scales, await adapters.first_promoted(info.model_revision))
