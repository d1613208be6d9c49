"""Database URLs: accepted forms, and the messages about others."""

from pathlib import Path

from sqlalchemy import text

from guard.store.database import connect
from guard.store.url import parse_url


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
