"""Database URLs: which forms are taken, and what is said about the others."""

from pathlib import Path

import pytest
from sqlalchemy import text

from guard.store.database import connect, parse_url


@pytest.mark.parametrize(
    ("given", "driver", "database"),
    [
        ("sqlite:///data/setback.db", "sqlite+aiosqlite", "data/setback.db"),
        ("sqlite+aiosqlite:////var/setback.db", "sqlite+aiosqlite", "/var/setback.db"),
        ("postgres://me:pw@host:5433/flags", "postgresql+asyncpg", "flags"),
        ("postgresql://host/flags", "postgresql+asyncpg", "flags"),
        ("postgresql+psycopg2://host/flags", "postgresql+asyncpg", "flags"),
    ],
)
def test_usual_forms_get_the_async_driver(given: str, driver: str, database: str) -> None:
    url = parse_url(given)
    assert (url.drivername, url.database) == (driver, database)


def test_sslmode_is_understood() -> None:
    assert parse_url("postgres://h/d?sslmode=require").query == {"ssl": "require"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("flags.db", "sqlite:///file.db"),
        ("", "sqlite:///file.db"),
        ("mysql://host/flags", "use sqlite or postgresql"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("postgres://h/d?channel_binding=require", "unknown option 'channel_binding'"),
        ("postgres://h:port/d", "sqlite:///file.db"),
        ("postgres://h:99999/d", "at most 65535"),
        ("postgres:///d?host=/run&port=abc", "wrong option.*'abc'"),
        ("postgres://h/d?prepared_statement_cache_size=abc", "wrong option.*'abc'"),
        ("sqlite:///file.db?mode=ro", "unknown option 'mode' .* use timeout"),
        ("sqlite:///file.db?timeout=soon", "timeout .* is a number of seconds above 0"),
        ("sqlite:///file.db?timeout=0", "timeout .* is a number of seconds above 0"),
    ],
)
def test_other_forms_are_refused_with_the_fix(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_url(given)


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
