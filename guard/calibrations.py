"""The calibrations that this process applies. Owns which one applies to which adapter; re-reads the
database regularly, so that a new fit takes effect without a restart. Does not know the formula
(calibration.py) or the rows (store/calibrations.py).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from vllm.lora.request import LoRARequest

from guard.adapters import adapter_version
from guard.calibration import UNSCALED, Scales
from guard.store.calibrations import StoredCalibration
from guard.tasks import keep_refreshing

_log = logging.getLogger("vllm.setback")


class Source(Protocol):
    """The part of CalibrationStore that Calibrations uses."""

    async def in_force(self, model_revision: str) -> Mapping[int | None, StoredCalibration]:
        """Returns the newest fit of each adapter of that base model, and of the base (None)."""


class Calibrations:
    """The calibrations of one base model. active: returns the active version, None for the base.

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
        self._by_adapter: Mapping[int | None, StoredCalibration] = {}
        self._warned: set[int | None] = set()

    def of(self, lora_request: LoRARequest | None) -> Scales:
        """Returns an adapter's scales; UNSCALED where nothing was fitted."""
        version = adapter_version(lora_request)
        if lora_request is not None and version is None:
            return UNSCALED
        fit = self.fit_of(version)
        return UNSCALED if fit is None else fit.scales

    def fit_of(self, version: int | None) -> StoredCalibration | None:
        """Returns the fit of an adapter, or of the base model (None), if there is one."""
        return self._by_adapter.get(version)

    async def refresh(self) -> None:
        """Reads the fits again. Warns once when the active adapter has none.

        Raises StoreUnavailable.
        """
        self._by_adapter = await self._source.in_force(self._model_revision)
        version = self._active()
        if version not in self._by_adapter and version not in self._warned:
            self._warned.add(version)
            name = "the base" if version is None else f"adapter {version}"
            _log.warning(
                "The verdicts of %s are not calibrated: a threshold of 0.5 need not mean that "
                "half of what it flags is harmful. See `setback calibrate`.",
                name,
            )

    async def watch(self, poll_s: float) -> None:
        """Refreshes until cancelled. Logs failures and retries."""
        await keep_refreshing(self.refresh, poll_s, "how verdicts are calibrated")
