"""Every earlier schema, with a row in each of its tables, is migrated to the newest one and keeps
what it held."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Column, Connection, MetaData, Table, insert, select
from sqlalchemy import types as t

from guard.store import migrate
from guard.store.database import connect
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url

R = TypeVar("R")

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KNOWN: Mapping[tuple[str, str], Any] = {
    ("flags", "messages"): [{"role": "user", "content": "How do I harm the gnome?"}],
    ("flags", "categories"): ["violence"],
    ("flags", "category_scores"): {"violence": 0.9},
    ("flags", "action"): "block",
    ("flags", "review"): "confirmed",
    ("flags", "answer"): "First, you take the gnome.",
    ("runs", "status"): "rejected",
    ("flag_numbers", "last"): 1,
}
"""Values that the migrations or the stores read; all others are of the column's type."""


def revisions() -> list[str]:
    """All but the newest, oldest first."""
    config = migrate.alembic_config(parse_url("sqlite:///none.db"))
    history = ScriptDirectory.from_config(config).walk_revisions()
    return [script.revision for script in history][:0:-1]


def value_of(table: Table, column: Column[Any]) -> Any:
    name = (table.name, column.name)
    if name in KNOWN:
        return KNOWN[name]
    samples: tuple[tuple[type[Any], Any], ...] = (
        (t.Boolean, True),
        (t.JSON, {}),
        (t.DateTime, NOW),
        (t.Float, 0.5),
        (t.Integer, 1),
        (t.LargeBinary, b"1"),
        (t.String, "1"),
    )
    return next(sample for kind, sample in samples if isinstance(column.type, kind))


def tables(connection: Connection) -> list[Table]:
    """The tables of the schema in which rows may be put, with those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    # The search index has tables of SQLite's own.
    searches = ("alembic_version", "flag_search")
    return [table for table in metadata.sorted_tables if not table.name.startswith(searches)]


def fill(connection: Connection) -> None:
    """Puts a row into each table that has none."""
    for table in tables(connection):
        if not connection.execute(select(table)).first():
            values = {column.name: value_of(table, column) for column in table.columns}
            connection.execute(insert(table).values(values))


def rows(connection: Connection) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each table."""
    return {
        table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
        for table in tables(connection)
    }


def on(url: URL, action: Callable[[Connection], R]) -> R:
    async def run() -> R:
        engine = connect(url)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(action)
        finally:
            await engine.dispose()

    return asyncio.run(run())


@pytest.mark.parametrize("revision", revisions())
def test_its_rows_are_kept(empty_database: str, revision: str) -> None:
    url = parse_url(empty_database)
    migrate.upgrade(url)
    config = migrate.alembic_config(url)
    command.downgrade(config, revision)
    on(url, fill)
    before = on(url, rows)
    migrate.upgrade(url)
    command.check(config)
    after = on(url, rows)
    assert before
    for table, earlier in before.items():
        assert earlier
        columns = earlier[0].keys() & after[table][0].keys()
        kept = [{name: row[name] for name in columns} for row in after[table]]
        assert all({name: row[name] for name in columns} in kept for row in earlier), table

    async def count_flags() -> int:
        reviews = ReviewStore(url)
        flags = await reviews.page(Filter(request_id="1"), limit=9)
        await reviews.close()
        return len(flags)

    assert asyncio.run(count_flags()) == 1
