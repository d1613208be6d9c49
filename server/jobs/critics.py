"""The adapters of the served base model as critics, each with its calibration. Owns which of them
may serve as references for the gate: the base model, and the first adapter that was ever active.
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
    """fits: by adapter version, None for the base model. first: the first version ever active."""

    fits: Mapping[int | None, StoredCalibration]
    first: int | None

    def of(self, version: int | None) -> Critic:
        """Returns an adapter, or the base model (None), as a calibrated critic."""
        return Critic.of(version, self.fits)

    @property
    def references(self) -> list[Critic]:
        """The critics that no run changes."""
        base = self.of(None)
        return [base] if self.first is None else [base, self.of(self.first)]


async def known_critics(settings: Settings, info: ServedInfo) -> KnownCritics:
    """Returns the critics of the served base model. Raises StoreUnavailable."""
    url = settings.database_url
    async with AsyncExitStack() as stack:
        adapters, calibrations = AdapterStore(url), CalibrationStore(url)
        for store in (adapters, calibrations):
            stack.push_async_callback(store.close)
        fits = await calibrations.in_force(info.model_revision)
        return KnownCritics(fits, await adapters.first_promoted(info.model_revision))
