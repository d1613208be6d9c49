"""The adapters of the served base as critics, each on its scale, and which of them may tell the
gate's truth: the base alone, and the first adapter that was ever in force on it. Owns that choice
and how their calibrations are found.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore, StoredCalibration
from refine.critic import Critic
from refine.served import ServedInfo
from server.settings import Settings


@dataclass(frozen=True)
class KnownCritics:
    """fits: by adapter, of the base alone by None. first: the first that was ever in force."""

    fits: Mapping[int | None, StoredCalibration]
    first: int | None

    def of(self, version: int | None) -> Critic:
        """The adapter of that version, or the base alone, on its scale."""
        return Critic.of(version, self.fits)

    @property
    def references(self) -> list[Critic]:
        """Those that no run changes."""
        base = self.of(None)
        return [base] if self.first is None else [base, self.of(self.first)]


async def known_critics(settings: Settings, info: ServedInfo) -> KnownCritics:
    """Those of the served base. Raises StoreUnavailable."""
    url = settings.database_url
    async with AsyncExitStack() as stack:
        adapters, calibrations = AdapterStore(url), CalibrationStore(url)
        for store in (adapters, calibrations):
            stack.push_async_callback(store.close)
        fits = await calibrations.in_force(info.model_revision)
        return KnownCritics(fits, await adapters.first_promoted(info.model_revision))
