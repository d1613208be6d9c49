"""Every policy that was in force, by the hash that flags have. Owns their rows. Does not choose a
request's policy (guard/policies.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from guard.policy import Policy
from guard.store.store import Store
from guard.store.tables import PolicyRow
from guard.store.text import storable


@dataclass(frozen=True, kw_only=True)
class StoredPolicy:
    """One version of a policy. content: its fields. created_at: when a server first had it."""

    hash: str
    name: str
    content: Mapping[str, Any]
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

    async def list(self, limit: int) -> list[StoredPolicy]:
        """Returns at most `limit` policies, newest first."""
        query = select(PolicyRow).order_by(PolicyRow.created_at.desc(), PolicyRow.name).limit(limit)
        async with self._reading() as session:
            return [_stored(row) for row in await session.scalars(query)]


def _content(policy: Policy) -> dict[str, Any]:
    content = asdict(policy)
    for criterion in content["criteria"]:
        criterion["applies_to"] = sorted(criterion["applies_to"])
    return {name: value for name, value in content.items() if name not in ("hash", "name")}


def _stored(row: PolicyRow) -> StoredPolicy:
    return StoredPolicy(**{field.name: getattr(row, field.name) for field in fields(StoredPolicy)})
