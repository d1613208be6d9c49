"""The adapter registry: which adapters exist and which is active. Owns their rows and the history
of activations. Does not know the files (adapter_files.py) or the engine (adapters.py), or run
rollouts (rollouts.py): whatever changes the active adapter ends a running one.
"""

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from guard.errors import AdapterConflict, AdapterUnknown
from guard.store import audit
from guard.store.store import Store, from_row
from guard.store.tables import ActivationRow, AdapterRow, RolloutRow
from guard.store.text import storable

AdapterStatus = Literal["candidate", "promoted", "rejected"]
RolloutEnd = Literal["completed", "reverted", "stopped"]


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter as registered.

    version: the id of the run that made it. parent: the adapter it was trained from.
    model_revision: of its base model. sha256: of its manifest.json, in hex.
    """

    version: int
    parent: int | None
    model_revision: str
    sha256: str
    status: AdapterStatus
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A change of the active adapter. version: None for the base model. by: a user or "run 7"."""

    id: int
    created_at: datetime
    version: int | None
    by: str
    reason: str


class AdapterStore(Store):
    """The adapters in one database. Every method raises StoreUnavailable when the database fails.

    Usage:
        await store.register(version=7, parent=None, model_revision="abc", sha256="...")
        await store.activate(7, by="run 7", reason="passed the gate")
        assert await store.active() == 7
    """

    async def register(
        self, *, version: int, parent: int | None, model_revision: str, sha256: str
    ) -> StoredAdapter:
        """Registers a candidate. Returns the existing one if version and sha256 are the same.

        Raises AdapterConflict when that version has another sha256.
        """
        async with self._transaction() as session:
            row = await session.get(AdapterRow, version)
            if row is None:
                row = AdapterRow(
                    version=version,
                    parent=parent,
                    model_revision=model_revision,
                    sha256=sha256,
                    status="candidate",
                    created_at=datetime.now(UTC),
                )
                session.add(row)
                await session.flush()
            if row.sha256 != sha256:
                raise AdapterConflict(f"Adapter {version} is registered with other files already")
            return from_row(StoredAdapter, row)

    async def get(self, version: int) -> StoredAdapter | None:
        """Returns the adapter with that version, or None."""
        async with self._reading() as session:
            row = await session.get(AdapterRow, version)
        return None if row is None else from_row(StoredAdapter, row)

    async def list(
        self, limit: int = 1000, before: int | None = None
    ) -> builtins.list[StoredAdapter]:
        """Returns at most `limit` adapters, newest first, of versions below `before` if given."""
        query = select(AdapterRow).order_by(AdapterRow.version.desc()).limit(limit)
        if before is not None:
            query = query.where(AdapterRow.version < before)
        async with self._reading() as session:
            return [from_row(StoredAdapter, row) for row in await session.scalars(query)]

    async def first_promoted(self, model_revision: str) -> int | None:
        """Returns the lowest version that was ever active on that base model, or None."""
        query = (
            select(AdapterRow.version)
            .where(AdapterRow.model_revision == model_revision, AdapterRow.status == "promoted")
            .order_by(AdapterRow.version)
            .limit(1)
        )
        async with self._reading() as session:
            return (await session.scalars(query)).first()

    async def set_status(self, version: int, status: AdapterStatus) -> None:
        """Raises AdapterUnknown, or AdapterConflict when the active adapter is rejected. Rejecting
        an adapter stops its rollout."""
        async with self._transaction() as session:
            if status == "rejected":
                outcome = f"adapter {version} was rejected"
                by = f"run {version}"
                await end_rollout(session, "stopped", by=by, outcome=outcome, version=version)
            row = await existing(session, version)
            if status == "rejected" and (await preferred(session))[0] == version:
                raise AdapterConflict(f"Adapter {version} is active; activate another first")
            row.status = status

    async def active(self) -> int | None:
        """Returns the active version; None is the base model."""
        return (await self.preferred())[0]

    async def preferred(self) -> builtins.list[int | None]:
        """Returns the active version, then what each rollback would activate; ends with None."""
        async with self._reading() as session:
            return await preferred(session)

    async def activate(self, version: int | None, *, by: str, reason: str) -> Activation:
        """Makes `version` active. A candidate becomes promoted. Stops a running rollout.

        Raises AdapterUnknown, or AdapterConflict when the adapter was rejected.
        """
        async with self._transaction() as session:
            return await activate(session, version, by, reason)

    async def rollback(self, *, by: str, reason: str) -> Activation:
        """Activates what was active before the current adapter. Repeated calls go further back.
        Stops a running rollout.

        Raises AdapterConflict when the base model is active.
        """
        async with self._transaction() as session:
            # Lock the oldest activation, so that two concurrent rollbacks run one after the other.
            # The newest row would not do: each rollback adds another one.
            first = select(ActivationRow.id).order_by(ActivationRow.id).limit(1)
            await session.execute(first.with_for_update())
            path = await preferred(session)
            if len(path) < 2:
                raise AdapterConflict("The base alone is active; there is nothing to go back to")
            return await activate(session, path[1], by, reason)

    async def history(
        self, limit: int = 100, version: int | None = None
    ) -> builtins.list[Activation]:
        """Returns at most `limit` activations, newest first, of one adapter if given."""
        query = select(ActivationRow).order_by(ActivationRow.id.desc()).limit(limit)
        if version is not None:
            query = query.where(ActivationRow.version == version)
        async with self._reading() as session:
            return [from_row(Activation, row) for row in await session.scalars(query)]


async def existing(session: AsyncSession, version: int) -> AdapterRow:
    """Returns the adapter's row. Raises AdapterUnknown."""
    row = await session.get(AdapterRow, version)
    if row is None:
        raise AdapterUnknown(f"There is no adapter {version}; `setback adapters list` lists them")
    return row


async def activate(session: AsyncSession, version: int | None, by: str, reason: str) -> Activation:
    """AdapterStore.activate within a transaction."""
    subject = "the base" if version is None else f"adapter {version}"
    # First, in the order in which a rollout that completes takes its locks.
    await end_rollout(session, "stopped", by=by, outcome=f"{subject} was put in force by {by}")
    if version is not None:
        adapter = await existing(session, version)
        if adapter.status == "rejected":
            raise AdapterConflict(f"Adapter {version} was rejected and is not activated")
        adapter.status = "promoted"
    row = ActivationRow(
        created_at=datetime.now(UTC), version=version, by=storable(by), reason=storable(reason)
    )
    session.add(row)
    audit.record(session, by, "adapter.activated", subject, reason=reason)
    await session.flush()
    return from_row(Activation, row)


async def end_rollout(
    session: AsyncSession,
    status: RolloutEnd,
    *,
    by: str,
    outcome: str,
    number: int | None = None,
    version: int | None = None,
) -> RolloutRow | None:
    """Ends the running rollout, if it has that number and is of that version where given. Returns
    its row, or None when there is no such rollout: exactly one of several callers ends it."""
    now = datetime.now(UTC)
    ending = (
        update(RolloutRow)
        .where(RolloutRow.status == "running")
        .values(status=status, outcome=storable(outcome), finished_at=now)
    )
    if number is not None:
        ending = ending.where(RolloutRow.id == number)
    if version is not None:
        ending = ending.where(RolloutRow.version == version)
    ended = await session.scalar(ending.returning(RolloutRow))
    if ended is not None:
        audit.record(session, by, f"rollout.{status}", f"rollout {ended.id}", reason=outcome)
    return ended


async def preferred(session: AsyncSession) -> builtins.list[int | None]:
    """AdapterStore.preferred within a transaction."""
    activated = await session.scalars(select(ActivationRow.version).order_by(ActivationRow.id))
    rejected = set(
        await session.scalars(select(AdapterRow.version).where(AdapterRow.status == "rejected"))
    )
    return [version for version in rollback_path(list(activated)) if version not in rejected]


def rollback_path(activated: Sequence[int | None]) -> builtins.list[int | None]:
    """Returns the active version, the one before it, and so on to the base model (None).

    activated: the history, oldest first. A rollback removes the version it leaves from the path, so
    that a second rollback does not return to it.
    """
    path: list[int | None] = [None]
    for version in activated:
        if len(path) > 1 and path[-2] == version:
            path.pop()
        elif path[-1] != version:
            path.append(version)
    return path[::-1]
