"""Connections to the store's database, SQLite or PostgreSQL. Owns the timeouts and how failures
become StoreUnavailable. Does not parse URLs (url.py) or create tables (migrate.py).
"""

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncpg import InterfaceError, PostgresError
from sqlalchemy import URL, Connection, ExceptionContext, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from guard.errors import StoreUnavailable
from guard.store.url import engine_arguments, without_driver

STATEMENT_TIMEOUT_S = 15
DEFAULT_POOL_SIZE = 10
_READ_ONLY = "25006"
"""PostgreSQL's SQLSTATE of a write in a read-only transaction."""
READ_ONLY = {"setback_read_only": True}
"""Execution options of a connection whose transactions write nothing."""
LOCK_TIMEOUT_S = 30
"""How long a writer waits for SQLite's lock, unless the URL sets a timeout, or for a free
connection."""


def connect(
    url: URL,
    statement_timeout_s: float | None = STATEMENT_TIMEOUT_S,
    pool_size: int = DEFAULT_POOL_SIZE,
) -> AsyncEngine:
    """Returns an engine for a URL from parse_url. It connects at the first use.

    statement_timeout_s: PostgreSQL's statement timeout; None for no timeout.
    pool_size: the most connections.
    """
    # Parameters hold withheld answers: keep them out of errors and logs.
    common: dict[str, Any] = {
        "hide_parameters": True,
        "pool_timeout": LOCK_TIMEOUT_S,
        "pool_size": pool_size,
        "max_overflow": 0,
    }
    if url.get_backend_name() == "postgresql":
        url, arguments = engine_arguments(url)
        arguments["command_timeout"] = statement_timeout_s
        engine = create_async_engine(url, pool_pre_ping=True, connect_args=arguments, **common)
        event.listen(engine.sync_engine, "handle_error", _drop_read_only)
        return engine
    # SQLAlchemy reads a timeout in the URL itself.
    timeouts = {} if "timeout" in url.query else {"timeout": LOCK_TIMEOUT_S}
    engine = create_async_engine(url, connect_args=timeouts, **common)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    event.listen(engine.sync_engine, "invalidate", _unlock_sqlite)
    return engine


def _drop_read_only(context: ExceptionContext) -> None:
    """Closes all connections to a server that became read-only: after a failover the old primary
    still answers, and only new connections find the new one."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions itself, too late, and never for DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a committed flag must survive a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads = READ_ONLY.items() <= connection.get_execution_options().items()
    # IMMEDIATE waits for the lock; a reader that becomes a writer midway would fail instead.
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _unlock_sqlite(connection: Any, _record: object, error: BaseException | None) -> None:
    # A closed connection keeps its lock until a cancelled statement's cursor is collected.
    if isinstance(error, CancelledError):
        connection.rollback()


def make_folder(url: URL) -> None:
    """Creates an SQLite file's folder. Raises StoreUnavailable when that fails."""
    if url.get_backend_name() == "sqlite" and url.database:
        with store_errors(url):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def require_file(url: URL) -> None:
    """Raises StoreUnavailable when an SQLite file is missing: SQLite would create an empty one."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise StoreUnavailable(f"There is no database {url.database}; run `setback db upgrade`")


@contextmanager
def store_errors(url: URL) -> Iterator[None]:
    """Turns all database failures into StoreUnavailable, without password or row text."""
    try:
        yield
    except (SQLAlchemyError, PostgresError, InterfaceError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        # Later lines may quote the row, and so the withheld answer; hence also `from None`.
        problem = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        raise StoreUnavailable(f"The flag store {without_driver(url)} failed: {problem}") from None
