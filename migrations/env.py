"""Run by Alembic for each command: connects, takes the lock, applies. Online only."""

import asyncio

from alembic import context
from sqlalchemy import URL, Connection, text

from guard.store import database
from guard.store.tables import METADATA
from server.settings import load_settings

LOCK = 0x5E7BAC  # any number, the same in every process


def _is_search(name: str | None) -> bool:
    """Each database makes its search index in its own way: see guard/store/search.py."""
    return (name or "").startswith("flag_search")


def migrate(connection: Connection) -> None:
    """One transaction for everything, so that a failure leaves the schema as it was."""
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        transactional_ddl=True,
        include_name=lambda name, kind, _parents: kind != "table" or not _is_search(name),
        # SQLite alters a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        # SQLite's lock is its BEGIN IMMEDIATE: see guard/store/database.py.
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.run_migrations()


async def main(url: URL) -> None:
    """Connects to `url` and migrates."""
    # A migration may copy a large table, or wait for the process that is doing so.
    engine = database.connect(url, statement_timeout_s=None)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    raise SystemExit("SQL scripts are not supported: a revision here may need to read the data")
# Given by guard/store/migrate.py; Alembic's own command line uses the settings.
asyncio.run(main(context.config.attributes.get("url") or load_settings().database_url))
