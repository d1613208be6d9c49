"""Stored calibrations. Owns their rows; the newest one of each adapter is in force. Does not know
the formula (guard/calibration.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from guard.calibration import Calibration, Scales
from guard.store import audit
from guard.store.store import Store
from guard.store.tables import CalibrationRow
from guard.store.text import storable


@dataclass(frozen=True, kw_only=True)
class StoredCalibration:
    """One fit. adapter: a version, None for the base model. model_revision: of the base model.

    rows: the labelled examples it was fitted on.
    """

    adapter: int | None
    model_revision: str
    scales: Scales
    rows: int
    by: str
    created_at: datetime


class CalibrationStore(Store):
    """The fits in one database. Every method raises StoreUnavailable when the database fails."""

    async def add(
        self,
        *,
        adapter: int | None,
        model_revision: str,
        scales: Scales,
        rows: int,
        by: str,
    ) -> None:
        """Puts a fit in force, replacing earlier ones of the same adapter and base model."""
        async with self._transaction() as session:
            session.add(
                CalibrationRow(
                    adapter=adapter,
                    model_revision=storable(model_revision),
                    slope=scales.answers.slope,
                    intercept=scales.answers.intercept,
                    text_slope=scales.texts.slope,
                    text_intercept=scales.texts.intercept,
                    rows=rows,
                    by=storable(by),
                    created_at=datetime.now(UTC),
                )
            )
            subject = "the base" if adapter is None else f"adapter {adapter}"
            audit.record(session, by, "calibrated", subject)

    async def in_force(self, model_revision: str) -> Mapping[int | None, StoredCalibration]:
        """Returns the newest fit of each adapter of that base model, and of the base (None)."""
        query = (
            select(CalibrationRow)
            .where(CalibrationRow.model_revision == model_revision)
            .order_by(CalibrationRow.id)
        )
        async with self._reading() as session:
            rows = await session.scalars(query)
            return {row.adapter: _stored(row) for row in rows}


def _stored(row: CalibrationRow) -> StoredCalibration:
    return StoredCalibration(
        adapter=row.adapter,
        model_revision=row.model_revision,
        scales=Scales(
            Calibration(row.slope, row.intercept),
            Calibration(row.text_slope, row.text_intercept),
        ),
        rows=row.rows,
        by=row.by,
        created_at=row.created_at,
    )
