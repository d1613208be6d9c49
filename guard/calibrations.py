"""The calibrations that this process applies: read from the database at the start and looked up
again now and then, so that a fit counts without a restart. Owns which one is in force for whom; the
formula is calibration.py's, the rows store/calibrations.py's.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from vllm.lora.request import LoRARequest

from guard.adapters import adapter_version
from guard.calibration import UNCALIBRATED, Calibration
from guard.store.calibrations import StoredCalibration
from guard.tasks import keep_refreshing

_log = logging.getLogger("vllm.setback")


class Source(Protocol):
    """The part of CalibrationStore that is needed here."""

    async def in_force(self, model_revision: str) -> Mapping[int | None, StoredCalibration]:
        """The newest fit of each adapter of that base, and of the base alone (None)."""


class Calibrations:
    """Those of one base model, by adapter. active: the version in force, None for the base.

    Usage:
        await calibrations.refresh()
        spawn(calibrations.watch(2.0))
        harm = calibrations.of(lora_request).apply(harm)
    """

    def __init__(
        self, source: Source, model_revision: str, active: Callable[[], int | None]
    ) -> None:
        self._source = source
        self._model_revision = model_revision
        self._active = active
        self._found: Mapping[int | None, StoredCalibration] = {}
        self._warned: set[int | None] = set()

    def of(self, lora_request: LoRARequest | None) -> Calibration:
        """That of an adapter of ours or of the base; the identity where nothing was fitted."""
        version = adapter_version(lora_request)
        if lora_request is not None and version is None:
            return UNCALIBRATED
        found = self.fit_of(version)
        return UNCALIBRATED if found is None else found.calibration

    def fit_of(self, version: int | None) -> StoredCalibration | None:
        """What was fitted for an adapter of ours, or for the base alone; None where nothing was."""
        return self._found.get(version)

    async def refresh(self) -> None:
        """Reads them again, and warns once of what is in force and has none.

        Raises StoreUnavailable.
        """
        self._found = await self._source.in_force(self._model_revision)
        version = self._active()
        if version not in self._found and version not in self._warned:
            self._warned.add(version)
            named = "the base" if version is None else f"adapter {version}"
            _log.warning(
                "The verdicts of %s are not calibrated: a threshold of 0.5 need not mean that "
                "half of what it flags is harmful. See `setback calibrate`.",
                named,
            )

    async def watch(self, poll_s: float) -> None:
        """Reads them again and again until cancelled; failures are logged and tried again."""
        await keep_refreshing(self.refresh, poll_s, "how verdicts are calibrated")
