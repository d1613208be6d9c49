"""API keys. Owns creating, revoking and finding them; stores only their hashes. Does not know which
route needs which role (server/auth/access.py).
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import select

from guard.errors import KeyUnknown
from guard.store import audit
from guard.store.store import Store, from_row
from guard.store.tables import KeyRow
from guard.store.text import storable

Role = Literal["call", "review", "admin"]
"""What a key is for. Each role may do what the roles before it may."""

ROLES: tuple[Role, ...] = get_args(Role)
_PREFIX = "sb-"
_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key without its secret.

    name: who or what it is for. hint: the last characters of its secret, to recognise it by.
    requests_per_minute: its rate limit, None for no limit. policy: the policy of its requests, None
    for that of their model or route.
    """

    id: int
    name: str
    role: Role
    sha256: str
    hint: str
    requests_per_minute: int | None
    policy: str | None
    created_at: datetime
    revoked_at: datetime | None

    def may(self, role: Role) -> bool:
        """Whether the key may do what needs `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyStore(Store):
    """The keys in one database. Every method raises StoreUnavailable when the database fails."""

    async def make(
        self,
        name: str,
        role: Role,
        *,
        by: str,
        requests_per_minute: int | None = None,
        policy: str | None = None,
    ) -> tuple[Key, str]:
        """Creates a key and returns it with its secret, which is not stored."""
        secret = _PREFIX + secrets.token_urlsafe(_BYTES)
        row = KeyRow(
            name=storable(name),
            role=role,
            sha256=_hash(secret),
            hint=secret[-4:],
            requests_per_minute=requests_per_minute,
            policy=policy,
            created_at=datetime.now(UTC),
        )
        async with self._transaction() as session:
            session.add(row)
            await session.flush()
            details = {"name": name, "role": role, **({"policy": policy} if policy else {})}
            audit.record(session, by, "key.made", f"key {row.id}", **details)
        return from_row(Key, row), secret

    async def revoke(self, number: int, *, by: str) -> Key:
        """Revokes a key for good. Revoking it again changes nothing. Raises KeyUnknown."""
        async with self._transaction() as session:
            row = await session.get(KeyRow, number)
            if row is None:
                raise KeyUnknown(f"There is no key {number}; `setback keys list` lists them")
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
                audit.record(session, by, "key.revoked", f"key {number}", name=row.name)
            return from_row(Key, row)

    async def list(self) -> list[Key]:
        """Returns all keys, revoked ones included, oldest first."""
        async with self._reading() as session:
            rows = await session.scalars(select(KeyRow).order_by(KeyRow.id))
            return [from_row(Key, row) for row in rows]


def find(keys: Iterable[Key], secret: str) -> Key | None:
    """Returns the key with that secret unless it is revoked. Takes the same time for any secret."""
    sha256, match = _hash(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, sha256) and key.revoked_at is None:
            match = key
    return match


def _hash(secret: str) -> str:
    # No slow hash: secrets are long and random already.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
