"""Runs of the refine loop. Owns the runs' rows, the flags each run used, and an adapter's lineage
back to the flags it was trained on. Decides nothing (refine/).
"""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from guard.errors import RunOver, RunUnknown, StoreUnavailable
from guard.store import audit
from guard.store.store import Store, from_row
from guard.store.tables import AdapterRow, RunFlagRow, RunRow
from guard.store.text import storable

RunStatus = Literal["running", "promoted", "rejected", "too_few", "failed", "cancelled"]
Use = Literal["train", "held_out", "repeat"]
Source = Literal["flags", "corpus", "shipped"]
"""Where a run's training data comes from: flagged answers, a corpus of requests, or, for the run
that records the installation of a shipped adapter, nowhere."""

STAGES = ("collect", "analyse", "dataset", "train", "gate", "promote")
"""In order; see refine/cycle.py."""


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One run of the refine loop.

    source: where its data comes from. stage: the current stage, or the last one.
    parent: the adapter that was active when it began. measures, reasons: the gate's figures and
    reasons. counts: of all stages, by name. error: why it failed. dataset_sha256: of its training
    data, in hex. cancelled_by: who asked for it to be cancelled; `status` says when it has been.
    """

    id: int
    source: Source
    status: RunStatus
    stage: str
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    model: str
    model_revision: str
    parent: int | None
    seed: int
    options: Mapping[str, Any]
    counts: Mapping[str, Any]
    measures: Mapping[str, Any] | None
    reasons: tuple[str, ...]
    error: str | None
    dataset_sha256: str | None
    cancelled_by: str | None


@dataclass(frozen=True)
class Lineage:
    """An adapter's runs and the flags they trained on, newest first."""

    runs: tuple[int, ...]
    flags: tuple[int, ...]


class RunStore(Store):
    """The runs in one database. Every method raises StoreUnavailable when the database fails."""

    async def start(
        self,
        *,
        model: str,
        model_revision: str,
        parent: int | None,
        seed: int,
        options: Mapping[str, Any],
        stage: str = "collect",
        source: Source = "flags",
    ) -> StoredRun:
        """Creates a run. Its number is never used again."""
        now = datetime.now(UTC)
        row = RunRow(
            source=source,
            status="running",
            stage=stage,
            created_at=now,
            updated_at=now,
            model=storable(model),
            model_revision=model_revision,
            parent=parent,
            seed=seed,
            options=storable(options),
            counts={},
            reasons=[],
        )
        async with self._transaction() as session:
            session.add(row)
            await session.flush()
            await session.refresh(row)
        return _stored(row)

    async def set_stage(
        self,
        number: int,
        stage: str,
        *,
        counts: Mapping[str, Any] | None = None,
        dataset_sha256: str | None = None,
    ) -> None:
        """Records that `stage` began, and adds `counts` to those of earlier stages."""
        async with self._transaction() as session:
            row = await _existing(session, number)
            row.stage, row.updated_at = stage, datetime.now(UTC)
            row.counts = {**row.counts, **storable(counts or {})}
            row.dataset_sha256 = dataset_sha256 or row.dataset_sha256

    async def finish(
        self,
        number: int,
        status: RunStatus,
        *,
        measures: Mapping[str, Any] | None = None,
        reasons: Sequence[str] = (),
        error: str | None = None,
    ) -> None:
        """Records how a run ended, with all figures of its gate."""
        async with self._transaction() as session:
            row = await _existing(session, number)
            row.status, row.reasons, row.error = status, storable(reasons), storable(error)
            row.measures = storable(measures)
            row.updated_at = row.finished_at = datetime.now(UTC)

    async def cancel(self, number: int, *, by: str) -> StoredRun:
        """Requests a run's cancellation; the process that runs it cancels it.

        Raises RunUnknown, or RunOver when it has ended.
        """
        async with self._transaction() as session:
            row = await session.get(RunRow, number)
            if row is None:
                raise RunUnknown(f"There is no run {number}")
            if row.status != "running":
                raise RunOver(f"Run {number} has ended: {row.status}")
            if row.cancelled_by is None:
                row.cancelled_by = storable(by)
                audit.record(session, by, "run.cancelled", f"run {number}")
            return _stored(row)

    async def get(self, number: int) -> StoredRun | None:
        """Returns the run with that number, or None."""
        async with self._reading() as session:
            row = await session.get(RunRow, number)
        return None if row is None else _stored(row)

    async def list(self, limit: int, before_id: int | None = None) -> builtins.list[StoredRun]:
        """Returns at most `limit` runs, newest first, below `before_id` if given."""
        query = select(RunRow).order_by(RunRow.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(RunRow.id < before_id)
        async with self._reading() as session:
            return [_stored(row) for row in await session.scalars(query)]

    async def unfinished(self, source: Source | None = None) -> StoredRun | None:
        """Returns the newest run that has not ended, of that source if given: it is running, or
        its process was killed."""
        query = select(RunRow).where(RunRow.status == "running").order_by(RunRow.id.desc()).limit(1)
        if source is not None:
            query = query.where(RunRow.source == source)
        async with self._reading() as session:
            row = await session.scalar(query)
        return None if row is None else _stored(row)

    async def set_flags(self, number: int, uses: Mapping[int, Use]) -> None:
        """Records which flags a run uses, and for what, replacing earlier records."""
        async with self._transaction() as session:
            await session.execute(delete(RunFlagRow).where(RunFlagRow.run_id == number))
            session.add_all(
                RunFlagRow(run_id=number, flag_id=flag, use=use) for flag, use in uses.items()
            )

    async def flags_of(self, number: int) -> dict[int, Use]:
        """Returns the flags that a run uses, and for what, oldest first."""
        query = select(RunFlagRow).where(RunFlagRow.run_id == number).order_by(RunFlagRow.flag_id)
        async with self._reading() as session:
            rows = await session.scalars(query)
            # Only set_flags writes there.
            return {row.flag_id: row.use for row in rows}  # type: ignore[misc]

    async def learned_from(self, version: int) -> Lineage:
        """Returns the runs and flags behind an adapter, through all its parents."""
        async with self._reading() as session:
            rows = await session.execute(select(AdapterRow.version, AdapterRow.parent))
            runs = _ancestry(version, dict(iter(rows)))
            learned = select(RunFlagRow.flag_id).where(
                RunFlagRow.run_id.in_(runs), RunFlagRow.use == "train"
            )
            flags = await session.scalars(learned.distinct().order_by(RunFlagRow.flag_id.desc()))
            return Lineage(tuple(runs), tuple(flags))


def _ancestry(version: int, parents: Mapping[int, int | None]) -> list[int]:
    """Returns `version` if it is registered, its parent, and so on."""
    versions: list[int] = []
    current: int | None = version
    while current is not None and current in parents and current not in versions:
        versions.append(current)
        current = parents[current]
    return versions


async def _existing(session: AsyncSession, number: int) -> RunRow:
    row = await session.get(RunRow, number)
    if row is None:
        raise StoreUnavailable(f"There is no run {number} in the database any more")
    return row


def _stored(row: RunRow) -> StoredRun:
    return replace(from_row(StoredRun, row), reasons=tuple(row.reasons))
