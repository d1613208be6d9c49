"""The migrations on both kinds of database match the tables, repeat, go back, and queue."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import URL, inspect

from guard.errors import StoreUnavailable
from guard.store import migrate
from guard.store.database import connect
from guard.store.flags import Flag, FlagStore
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url


def tables_of(url: URL) -> set[str]:
    async def read() -> set[str]:
        engine = connect(url)
        async with engine.connect() as connection:
            names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        await engine.dispose()
        return set(names)

    return asyncio.run(read())


def add_and_count(url: URL, flag: Flag) -> int:
    async def run() -> int:
        store = FlagStore(url)
        await store.check()
        await store.add(flag)
        await store.close()
        reviews = ReviewStore(url)
        count = len(await reviews.page(Filter(), limit=100))
        await reviews.close()
        return count

    return asyncio.run(run())


def upgrade_at(url: str) -> str:
    return migrate.upgrade(parse_url(url))


def test_the_migrations_make_what_the_tables_say(database: URL) -> None:
    command.check(migrate.alembic_config(database))


def test_upgrading_again_changes_nothing(database: URL, flag: Flag) -> None:
    add_and_count(database, flag)
    migrate.upgrade(database)
    assert add_and_count(database, flag) == 2


def test_down_and_up_again_works(database: URL, flag: Flag) -> None:
    command.downgrade(migrate.alembic_config(database), "base")
    assert tables_of(database) == {"alembic_version"}
    migrate.upgrade(database)
    command.check(migrate.alembic_config(database))
    assert add_and_count(database, flag) == 1


def test_many_processes_may_upgrade_at_once(empty_database: str, flag: Flag) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        revisions = set(pool.map(upgrade_at, [empty_database] * 4))
    assert len(revisions) == 1
    assert add_and_count(parse_url(empty_database), flag) == 1


def test_a_failing_migration_leaves_the_schema_as_it_was(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = parse_url(empty_database)
    monkeypatch.setattr("alembic.op.bulk_insert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate.upgrade(url)
    assert tables_of(url) == set()


def test_sql_scripts_are_refused(database: URL) -> None:
    with pytest.raises(SystemExit, match="SQL scripts are not supported"):
        command.upgrade(migrate.alembic_config(database), "head", sql=True)


def test_a_database_of_a_newer_version_is_a_clear_error(database: URL) -> None:
    async def age() -> None:
        engine = connect(database)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '2999_x'")
        await engine.dispose()

    asyncio.run(age())
    with pytest.raises(StoreUnavailable, match="2999_x.*newer Setback"):
        migrate.upgrade(database)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match=f"{tmp_path}/file/setback.db"):
        migrate.upgrade(parse_url(f"sqlite:///{tmp_path}/file/setback.db"))


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "setback.db"
    file.write_text("not a database " * 100)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        migrate.upgrade(parse_url(f"sqlite:///{file}"))


def test_flags_of_the_first_schema_are_kept(empty_database: str, flag: Flag) -> None:
    url = parse_url(empty_database)
    migrate.upgrade(url)
    add_and_count(url, flag)
    config = migrate.alembic_config(url)
    command.downgrade(config, "2026_11_22_flags")
    assert tables_of(url) == {"alembic_version", "flags", "secrets"}
    migrate.upgrade(url)
    command.check(config)
    assert add_and_count(url, flag) == 2


def test_flags_from_before_searches_are_found_by_word_and_category(
    empty_database: str, flag: Flag
) -> None:
    url = parse_url(empty_database)
    migrate.upgrade(url)
    add_and_count(url, replace(flag, answer="Zürich's zeppelin", revision="a boat"))
    config = migrate.alembic_config(url)
    command.downgrade(config, "2026_11_23_streams")
    assert not {name for name in tables_of(url) if name.startswith("flag_")}
    migrate.upgrade(url)

    async def count_flags(which: Filter) -> int:
        reviews = ReviewStore(url)
        flags = await reviews.page(which, limit=9)
        await reviews.close()
        return len(flags)

    for text in ("zürich", "zepp boat"):
        assert asyncio.run(count_flags(Filter(text=text))) == 1
    for category in flag.categories:
        assert asyncio.run(count_flags(Filter(category=category))) == 1
    assert asyncio.run(count_flags(Filter(text="user"))) == 0
