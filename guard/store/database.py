"""Connections to the store's database. Owns the engines' timeouts and what failures become; the
URL's forms are url.py's.

SQLite and PostgreSQL only. Knows no table; creates none (see migrate.py).
"""

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncpg import InterfaceError, PostgresError
from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from guard.errors import StoreUnavailable
from guard.store.url import engine_arguments, without_driver

STATEMENT_TIMEOUT_S = 15
LOCK_TIMEOUT_S = 30
"""How long a writer waits for its turn on SQLite, where the URL has no timeout of its own, or for a
free connection on either."""


def connect(url: URL, statement_timeout_s: float | None = STATEMENT_TIMEOUT_S) -> AsyncEngine:
    """An engine for a URL from parse_url. Nothing is opened before its first use.

    statement_timeout_s: how long PostgreSQL may take over one statement; None is for ever.
    """
    # Parameters stay out of errors and logs: they hold withheld answers.
    common: dict[str, Any] = {"hide_parameters": True, "pool_timeout": LOCK_TIMEOUT_S}
    if url.get_backend_name() == "postgresql":
        url, arguments = engine_arguments(url)
        arguments["command_timeout"] = statement_timeout_s
        return create_async_engine(url, pool_pre_ping=True, connect_args=arguments, **common)
    # SQLAlchemy takes a timeout from the URL itself.
    timeouts = {} if "timeout" in url.query else {"timeout": LOCK_TIMEOUT_S}
    engine = create_async_engine(url, connect_args=timeouts, **common)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    event.listen(engine.sync_engine, "invalidate", _unlock_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would otherwise begin transactions itself, late, and never around DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a commit that returned survives a power cut. A flag must.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits for its turn; a reader that turns writer midway would fail instead.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _unlock_sqlite(connection: Any, _record: object, error: BaseException | None) -> None:
    # A closed connection keeps its lock for as long as a cancelled statement's cursor lives.
    if isinstance(error, CancelledError):
        connection.rollback()


def make_folder(url: URL) -> None:
    """Makes the folder of an SQLite file; raises StoreUnavailable when that is not allowed."""
    if url.get_backend_name() == "sqlite" and url.database:
        with store_errors(url):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def require_file(url: URL) -> None:
    """Raises StoreUnavailable when an SQLite file is not there: SQLite would make an empty one."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise StoreUnavailable(f"There is no database {url.database}; run `setback db upgrade`")


@contextmanager
def store_errors(url: URL) -> Iterator[None]:
    """Turns every failure of the database into StoreUnavailable, without password or row text."""
    try:
        yield
    except (SQLAlchemyError, PostgresError, InterfaceError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        # Later lines may quote the row, and so the withheld answer; hence also `from None`.
        problem = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        raise StoreUnavailable(f"The flag store {without_driver(url)} failed: {problem}") from None
