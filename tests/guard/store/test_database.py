"""Database connections: durable, shared, and dropped when their server became read-only."""

from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from guard.store.database import connect
from guard.store.flags import FlagStore
from guard.store.keys import KeyStore
from guard.store.url import parse_url
from tests.postgres import Postgres


async def test_sqlite_commits_survive_a_power_cut(tmp_path: Path) -> None:
    engine = connect(parse_url(f"sqlite:///{tmp_path}/new.db"))
    async with engine.connect() as connection:
        settings = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await engine.dispose()
    full = 2
    assert settings == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


async def test_connections_to_a_server_that_became_read_only_are_dropped(
    postgres_socket: Path, tmp_path: Path
) -> None:
    name = tmp_path.name.lower()
    await Postgres(postgres_socket).create_database(name)
    engine = connect(parse_url(f"postgresql://setback@/{name}?host={postgres_socket}"), pool_size=2)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE written (n int)"))
        # As after a failover: the session goes on, and may no longer write.
        await connection.execute(text("SET SESSION default_transaction_read_only = on"))
    with pytest.raises(DBAPIError, match="read-only"):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO written VALUES (1)"))
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO written VALUES (2)"))
    await engine.dispose()


async def test_a_shared_engine_outlives_the_stores_that_use_it(database: URL) -> None:
    engine = connect(database, pool_size=2)
    one, other = FlagStore(database, engine), KeyStore(database, engine)
    await one.check()
    await one.close()
    assert await other.list() == []
    await other.close()
    assert engine.pool.status()
    await engine.dispose()
