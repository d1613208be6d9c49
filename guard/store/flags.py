"""Writing and reading flags. Owns what a flag holds, its durability and its queries.

add() returns only after the commit. Does not decide what is flagged (see policy.py).
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from sqlalchemy import URL, Text, cast, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store import database, migrate
from guard.store.tables import FlagRow, SecretRow
from guard.store.text import storable
from guard.tasks import spawn


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One answer that reached a threshold of the policy.

    route: the path called, e.g. "/v1/chat/completions". choice: its index when n > 1.
    messages: the conversation as received, each {"role", "content"}; a raw prompt is one user turn.
    answer: the draft, which the client may never have seen.
    harm, category_scores, categories: the verdict, and the categories that reached a threshold.
    adapter, model, model_revision, policy_hash, prompt_version: all that decided it.
    user_hash: see hash_user; None when the request named no user.
    """

    request_id: str
    route: str
    choice: int
    messages: Sequence[Mapping[str, object]]
    answer: str
    harm: float
    category_scores: Mapping[str, float]
    categories: tuple[str, ...]
    action: Action
    adapter: str
    model: str
    model_revision: str
    policy_hash: str
    prompt_version: str
    user_hash: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class StoredFlag(Flag):
    """A flag with the number the store gave it; later ones have higher numbers."""

    id: int


def hash_user(user: str, salt: str) -> str:
    """HMAC-SHA256 in hex: tells users apart without saying who they are."""
    return hmac.new(
        salt.encode(), user.encode("utf-8", "surrogatepass"), hashlib.sha256
    ).hexdigest()


class FlagStore:
    """The flags in one database. Every method raises StoreUnavailable when the database fails.

    Usage:
        store = FlagStore(parse_url("sqlite:///data/setback.db"))
        await store.check()
        number = await store.add(flag)
        await store.close()
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine = database.connect(url)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writes: set[asyncio.Task[int]] = set()

    async def add(self, flag: Flag) -> int:
        """The number of the flag, committed. A caller that is cancelled meanwhile loses nothing."""
        write = spawn(self._write(flag))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self, flag: Flag) -> int:
        row = FlagRow(**{**storable(vars(flag)), "created_at": flag.created_at})
        async with self._transaction() as session:
            session.add(row)
        return row.id

    async def get(self, number: int) -> StoredFlag | None:
        """The flag of that number, or None."""
        async with self._transaction() as session:
            row = await session.get(FlagRow, number)
        return None if row is None else _stored(row)

    async def list(
        self,
        limit: int,
        before_id: int | None = None,
        category: str | None = None,
        request_id: str | None = None,
    ) -> list[StoredFlag]:
        """At most `limit` flags, newest first, below `before_id` when given."""
        query = select(FlagRow).order_by(FlagRow.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(FlagRow.id < before_id)
        if category is not None:
            # The quotes of the JSON text keep "hate" apart from "hate/threatening".
            named = cast(FlagRow.categories, Text)
            query = query.where(named.contains(f'"{category}"', autoescape=True))
        if request_id is not None:
            query = query.where(FlagRow.request_id == request_id)
        async with self._transaction() as session:
            rows = await session.scalars(query)
            return [_stored(row) for row in rows]

    async def user_salt(self) -> str:
        """The salt for hash_user that all processes on this database share."""
        async with self._transaction() as session:
            row = await session.get(SecretRow, "user_salt")
        if row is None:
            raise StoreUnavailable(
                "The user_salt is gone from the table `secrets`; set SETBACK_USER_SALT instead"
            )
        return row.value

    async def check(self) -> None:
        """Raises StoreUnavailable, naming the fix, unless reachable and migrated to the newest."""
        async with self._transaction() as session:
            connection = await session.connection()
            await connection.run_sync(migrate.require_newest)

    async def close(self) -> None:
        """Closes the connections once the writes under way are committed."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        # Each time: an open connection goes on writing to a file that somebody deleted.
        database.require_file(self._url)
        with database.store_errors(self._url):
            async with self._sessions.begin() as session:
                yield session


def _stored(row: FlagRow) -> StoredFlag:
    values = {name.name: getattr(row, name.name) for name in fields(StoredFlag)}
    values["categories"] = tuple(row.categories)
    values["action"] = Action(row.action)
    return StoredFlag(**values)
