"""What all stores share. Owns the database connection, its transactions and the check that the
schema is migrated. Knows no table.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import URL
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from guard.store import database, migrate

V = TypeVar("V")


class Store:
    """The base class of stores. Every method raises StoreUnavailable when the database fails.

    engine: the connections that several stores share; a store without one has its own.
    """

    def __init__(self, url: URL, engine: AsyncEngine | None = None) -> None:
        self._url = url
        self._is_shared = engine is not None
        self._engine = engine or database.connect(url)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        readers = self._engine.execution_options(**database.READ_ONLY)
        self._readers = async_sessionmaker(readers, expire_on_commit=False)

    async def check(self) -> None:
        """Raises StoreUnavailable, naming the fix, if unreachable or not at the newest schema."""
        async with self._reading() as session:
            connection = await session.connection()
            await connection.run_sync(migrate.require_newest)

    async def close(self) -> None:
        """Closes the connections, unless they are shared."""
        if not self._is_shared:
            await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        async with self._begun(self._sessions) as session:
            yield session

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that writes nothing and waits for no writer."""
        async with self._begun(self._readers) as session:
            yield session

    @asynccontextmanager
    async def _begun(
        self, sessions: async_sessionmaker[AsyncSession]
    ) -> AsyncIterator[AsyncSession]:
        # Every time: an open connection would go on writing to a deleted file.
        database.require_file(self._url)
        with database.store_errors(self._url):
            async with sessions.begin() as session:
                yield session

    def _insert(self, table: type[DeclarativeBase]) -> Any:
        """An INSERT in the database's own words, which can say what to do on a conflict."""
        dialects = {"sqlite": sqlite, "postgresql": postgresql}
        return dialects[self._url.get_backend_name()].insert(table)

    def _adding(
        self, table: type[DeclarativeBase], keys: Mapping[str, Any], counts: Mapping[str, Any]
    ) -> Any:
        """An INSERT of counts, which are added to those of a row with the same keys."""
        insert = self._insert(table).values(**keys, **counts)
        summed = {name: getattr(table, name) + insert.excluded[name] for name in counts}
        return insert.on_conflict_do_update(index_elements=list(keys), set_=summed)


def from_row(kind: type[V], row: DeclarativeBase) -> V:
    """Returns a dataclass of that kind, whose fields are the row's columns of the same names."""
    names = (field.name for field in fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(row, name) for name in names})
