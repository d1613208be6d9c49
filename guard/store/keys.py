"""The keys that callers show. Owns making, revoking and finding them; only their hashes are stored.

Which route needs which role is server/auth/access.py's.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import select

from guard.errors import KeyUnknown
from guard.store import audit
from guard.store.store import Store
from guard.store.tables import KeyRow
from guard.store.text import storable

Role = Literal["call", "review", "admin"]
"""What a key is for; each may do what the ones before it may."""

ROLES: tuple[Role, ...] = get_args(Role)
_PREFIX = "sb-"
_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key, without its secret.

    name: who or what it is for. hint: the end of its secret, to tell keys apart by.
    requests_per_minute: how often it may be used, None for as often as it likes.
    """

    id: int
    name: str
    role: Role
    sha256: str
    hint: str
    requests_per_minute: int | None
    created_at: datetime
    revoked_at: datetime | None

    def may(self, role: Role) -> bool:
        """Whether it may do what is for `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyStore(Store):
    """The keys in one database. Every method raises StoreUnavailable when the database fails."""

    async def make(
        self, name: str, role: Role, *, by: str, requests_per_minute: int | None = None
    ) -> tuple[Key, str]:
        """A new key and its secret, which cannot be had again."""
        secret = _PREFIX + secrets.token_urlsafe(_BYTES)
        row = KeyRow(
            name=storable(name),
            role=role,
            sha256=_hash(secret),
            hint=secret[-4:],
            requests_per_minute=requests_per_minute,
            created_at=datetime.now(UTC),
        )
        async with self._transaction() as session:
            session.add(row)
            await session.flush()
            audit.record(session, by, "key.made", f"key {row.id}", name=name, role=role)
        return _stored(row), secret

    async def revoke(self, number: int, *, by: str) -> Key:
        """Ends a key for good; again, changes nothing. Raises KeyUnknown."""
        async with self._transaction() as session:
            row = await session.get(KeyRow, number)
            if row is None:
                raise KeyUnknown(
                    f"There is no key {number}; `setback keys list` shows those there are"
                )
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
                audit.record(session, by, "key.revoked", f"key {number}", name=row.name)
            return _stored(row)

    async def list(self) -> list[Key]:
        """All keys ever made, oldest first."""
        async with self._transaction() as session:
            return [
                _stored(row) for row in await session.scalars(select(KeyRow).order_by(KeyRow.id))
            ]


def find(keys: Iterable[Key], secret: str) -> Key | None:
    """The key with that secret, unless it is revoked; takes as long whatever the secret."""
    shown, found = _hash(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, shown) and key.revoked_at is None:
            found = key
    return found


def _hash(secret: str) -> str:
    # Secrets are random and long: a slow hash would protect nothing more.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _stored(row: KeyRow) -> Key:
    return Key(**{name.name: getattr(row, name.name) for name in fields(Key)})
