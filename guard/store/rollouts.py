"""Staged rollouts: a new adapter answers a share of requests before it may be activated. Owns the
rollouts' rows and the counts of both adapters, to which all processes add. Does not choose who gets
the new adapter (guard/rollouts.py) or decide how a rollout ends (server/jobs/rollouts.py).
"""

import builtins
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select, update

from guard.errors import AdapterConflict
from guard.store import audit
from guard.store.adapters import RolloutEnd, activate, end_rollout, existing, preferred
from guard.store.store import Store, from_row
from guard.store.sums import Sums
from guard.store.tables import RolloutArmRow, RolloutRow
from guard.store.text import storable

RolloutStatus = Literal["running"] | RolloutEnd
Verdict = Literal["completed", "reverted"]


@dataclass(frozen=True, kw_only=True)
class StoredRollout:
    """A rollout of adapter `version` beside the one that was active, None for the base model.

    share: of requests, in (0, 1). by, reason: who started it and why. outcome: why it ended, in
    words. looks: how often the two adapters were compared.
    """

    id: int
    created_at: datetime
    finished_at: datetime | None
    version: int
    compared_with: int | None
    share: float
    by: str
    reason: str
    status: RolloutStatus
    outcome: str
    looks: int


@dataclass(frozen=True)
class ArmCounts(Sums):
    """What happened to the requests of one adapter.

    answers: judged answers, and requests refused for their input. withheld: of these, the ones
    that were rewritten, blocked or refused. errors: failures of the critic or the store.
    timed: answers whose times are known. guard_s: their seconds from the last token to the verdict.
    token_s: their seconds from the request to the verdict, for each of their tokens; guard_s2 and
    token_s2 are the sums of squares.
    """

    requests: int = 0
    answers: int = 0
    flagged: int = 0
    withheld: int = 0
    errors: int = 0
    timed: int = 0
    guard_s: float = 0.0
    guard_s2: float = 0.0
    token_s: float = 0.0
    token_s2: float = 0.0


@dataclass(frozen=True)
class ShadowCounts(Sums):
    """Answers of the old adapter that the new one judged too, and which of the two flagged them."""

    judged: int = 0
    both: int = 0
    only_new: int = 0
    only_old: int = 0


@dataclass(frozen=True)
class RolloutCounts(Sums):
    """All counts of a rollout: the new adapter's, the old one's and the shadow's."""

    new: ArmCounts = field(default_factory=ArmCounts)
    old: ArmCounts = field(default_factory=ArmCounts)
    shadow: ShadowCounts = field(default_factory=ShadowCounts)


def parse_share(value: object) -> float:
    """Returns a share in (0, 1) from a number or a text such as "5%" or "0.05". Raises
    ValueError."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"{text!r} is no share of requests; give one such as 5% or 0.05")
    return share


class RolloutStore(Store):
    """The rollouts in one database. Every method raises StoreUnavailable when the database fails.

    Usage:
        rollout = await store.start(7, share=0.05, by="ada", reason="careful")
        await store.add(rollout.id, RolloutCounts(new=ArmCounts(requests=1)))
        await store.end(rollout.id, "completed", by="rollout 1", outcome="not worse")
    """

    async def start(self, version: int, *, share: float, by: str, reason: str) -> StoredRollout:
        """Starts a rollout of an adapter beside the active one.

        Raises AdapterUnknown, or AdapterConflict when the adapter was rejected or is active, or
        another rollout is running.
        """
        async with self._transaction() as session:
            adapter, active = await existing(session, version), (await preferred(session))[0]
            if adapter.status == "rejected":
                raise AdapterConflict(f"Adapter {version} was rejected; roll out another one")
            if active == version:
                raise AdapterConflict(f"Adapter {version} is active already; roll out another one")
            row = {
                **dict.fromkeys(("looks", "judged", "both", "only_new", "only_old"), 0),
                "created_at": datetime.now(UTC),
                "version": version,
                "compared_with": active,
                "share": share,
                "by": storable(by),
                "reason": storable(reason),
                "status": "running",
                "outcome": "",
            }
            insert = self._insert(RolloutRow).values(row).on_conflict_do_nothing()
            number = await session.scalar(insert.returning(RolloutRow.id))
            if number is None:
                raise AdapterConflict(
                    "A rollout is running; wait for its end, or stop it with "
                    "`setback adapters rollout stop`"
                )
            details = {"adapter": version, "share": share, "reason": reason}
            audit.record(session, by, "rollout.started", f"rollout {number}", **details)
            started = await session.get(RolloutRow, number)
            assert started is not None
            return from_row(StoredRollout, started)

    async def running(self) -> StoredRollout | None:
        """Returns the rollout that is running, or None."""
        async with self._reading() as session:
            row = await session.scalar(select(RolloutRow).where(RolloutRow.status == "running"))
        return None if row is None else from_row(StoredRollout, row)

    async def list(self, limit: int, before_id: int | None = None) -> builtins.list[StoredRollout]:
        """Returns at most `limit` rollouts, newest first, below `before_id` if given."""
        query = select(RolloutRow).order_by(RolloutRow.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(RolloutRow.id < before_id)
        async with self._reading() as session:
            return [from_row(StoredRollout, row) for row in await session.scalars(query)]

    async def look(self, number: int, looks: int) -> bool:
        """Records that the adapters are compared for the time `looks`. Returns False when they were
        already, or the rollout has ended."""
        looked = (
            update(RolloutRow)
            .where(
                RolloutRow.id == number, RolloutRow.status == "running", RolloutRow.looks < looks
            )
            .values(looks=looks)
        )
        async with self._transaction() as session:
            return await session.scalar(looked.returning(RolloutRow.id)) is not None

    async def end(self, number: int, status: Verdict, *, by: str, outcome: str) -> bool:
        """Ends a rollout; one that is completed activates its adapter. Returns False when it had
        ended."""
        async with self._transaction() as session:
            row = await end_rollout(session, status, by=by, outcome=outcome, number=number)
            if row is not None and status == "completed":
                await activate(session, row.version, f"rollout {number}", outcome)
            return row is not None

    async def stop(self, *, by: str, reason: str) -> StoredRollout:
        """Stops the running rollout by hand. Raises AdapterConflict when there is none."""
        outcome = f"stopped by {by}" + (f": {reason}" if reason else "")
        async with self._transaction() as session:
            row = await end_rollout(session, "stopped", by=by, outcome=outcome)
            if row is None:
                raise AdapterConflict("No rollout is running; there is nothing to stop")
            return from_row(StoredRollout, row)

    async def add(self, number: int, counts: RolloutCounts) -> None:
        """Adds what one process counted."""
        shadow = {
            name: getattr(RolloutRow, name) + count
            for name, count in asdict(counts.shadow).items()
            if count
        }
        async with self._transaction() as session:
            for arm, values in (("new", counts.new), ("old", counts.old)):
                if values != ArmCounts():
                    keys = {"rollout_id": number, "arm": arm}
                    await session.execute(self._adding(RolloutArmRow, keys, asdict(values)))
            if shadow:
                adding = update(RolloutRow).where(RolloutRow.id == number).values(shadow)
                await session.execute(adding)

    async def counts(self, numbers: Collection[int]) -> Mapping[int, RolloutCounts]:
        """Returns the counts of each of these rollouts."""
        async with self._reading() as session:
            arms = await session.scalars(
                select(RolloutArmRow).where(RolloutArmRow.rollout_id.in_(numbers))
            )
            by_arm = {(row.rollout_id, row.arm): from_row(ArmCounts, row) for row in arms}
            rows = await session.scalars(select(RolloutRow).where(RolloutRow.id.in_(numbers)))
            shadows = {row.id: from_row(ShadowCounts, row) for row in rows}
        none = ArmCounts()
        return {
            number: RolloutCounts(
                by_arm.get((number, "new"), none), by_arm.get((number, "old"), none), shadow
            )
            for number, shadow in shadows.items()
        }
