"""The policy files that were activated in the database, and every policy that was in force, by the
hash that flags have. Owns their rows. Does not choose a request's policy (guard/policies.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from guard.policy import Policy
from guard.store import audit
from guard.store.store import Store, from_row
from guard.store.tables import PolicyFileRow, PolicyRow
from guard.store.text import storable


@dataclass(frozen=True, kw_only=True)
class StoredPolicy:
    """One version of a policy. content: its fields. created_at: when a server first had it."""

    hash: str
    name: str
    content: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class StoredPolicyFile:
    """A policy file that was activated: its TOML, by whom and when."""

    id: int
    text: str
    by: str
    created_at: datetime


class PolicyStore(Store):
    """The policies of one database. Every method raises StoreUnavailable when the database
    fails."""

    async def add(self, policies: Iterable[Policy]) -> None:
        """Keeps policies that come into force; those that are known stay as they were."""
        now = datetime.now(UTC)
        rows = [
            {
                "hash": policy.hash,
                "name": policy.name,
                "content": storable(_content(policy)),
                "created_at": now,
            }
            for policy in policies
        ]
        async with self._transaction() as session:
            await session.execute(self._insert(PolicyRow).values(rows).on_conflict_do_nothing())

    async def activate(self, text: str, *, by: str) -> None:
        """Puts a policy file in force for all servers of this database that have none set."""
        row = PolicyFileRow(text=storable(text), by=storable(by), created_at=datetime.now(UTC))
        async with self._transaction() as session:
            session.add(row)
            await session.flush()
            audit.record(session, by, "policy.activated", f"policy file {row.id}")

    async def newest(self) -> StoredPolicyFile | None:
        """Returns the policy file that is in force, or None."""
        return next(iter(await self.files(1)), None)

    async def files(self, limit: int) -> Sequence[StoredPolicyFile]:
        """Returns at most `limit` policy files that were activated, newest first."""
        query = select(PolicyFileRow).order_by(PolicyFileRow.id.desc()).limit(limit)
        async with self._reading() as session:
            return [from_row(StoredPolicyFile, row) for row in await session.scalars(query)]

    async def list(self, limit: int) -> list[StoredPolicy]:
        """Returns at most `limit` policies, newest first."""
        query = select(PolicyRow).order_by(PolicyRow.created_at.desc(), PolicyRow.name).limit(limit)
        async with self._reading() as session:
            return [from_row(StoredPolicy, row) for row in await session.scalars(query)]


def _content(policy: Policy) -> dict[str, Any]:
    content = asdict(policy)
    for criterion in content["criteria"]:
        criterion["applies_to"] = sorted(criterion["applies_to"])
    return {name: value for name, value in content.items() if name not in ("hash", "name")}
