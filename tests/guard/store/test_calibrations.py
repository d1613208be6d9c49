"""Stored calibrations."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from guard.calibration import Calibration, Scales
from guard.store.audit import AuditStore
from guard.store.calibrations import CalibrationStore


@pytest.fixture
async def fits(database: URL) -> AsyncIterator[CalibrationStore]:
    store = CalibrationStore(database)
    yield store
    await store.close()


async def add(fits: CalibrationStore, adapter: int | None, slope: float, revision: str) -> None:
    await fits.add(
        adapter=adapter,
        model_revision=revision,
        scales=Scales(Calibration(slope, -0.5), Calibration(2 * slope, 0.5)),
        rows=80,
        by="anna",
    )


async def test_the_newest_fit_of_each_adapter_of_a_base_counts(fits: CalibrationStore) -> None:
    for adapter, slope, revision in (
        (None, 1.0, "r1"),
        (4, 2.0, "r1"),
        (4, 3.0, "r1"),
        (4, 9.0, "r2"),
    ):
        await add(fits, adapter, slope, revision)
    calibrations = await fits.in_force("r1")
    assert {version: one.scales.answers.slope for version, one in calibrations.items()} == {
        None: 1.0,
        4: 3.0,
    }
    assert calibrations[4].scales == Scales(Calibration(3.0, -0.5), Calibration(6.0, 0.5))
    assert (calibrations[4].rows, calibrations[4].by) == (80, "anna")
    assert await fits.in_force("r3") == {}


async def test_a_fit_is_in_the_audit_trail(fits: CalibrationStore, database: URL) -> None:
    await add(fits, 4, 2.0, "r1")
    trail = AuditStore(database)
    (entry,) = await trail.list(5)
    await trail.close()
    assert (entry.actor, entry.event, entry.subject) == ("anna", "calibrated", "adapter 4")
