"""Flags survive killed processes, concurrent writers, lost connections and locks."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from guard.errors import StoreUnavailable
from guard.store import migrate
from guard.store.database import connect
from guard.store.flags import Flag, FlagStore
from guard.store.url import parse_url

PROCESSES = multiprocessing.get_context("spawn")


def add_some(url: URL, flag: Flag, count: int) -> None:
    """Runs in its own process."""

    async def run() -> None:
        store = FlagStore(url)
        await asyncio.gather(*(store.add(flag) for _ in range(count)))
        await store.close()

    asyncio.run(run())


def add_and_be_killed(url: URL, flag: Flag) -> None:
    """Runs in its own process, which ends without closing anything."""

    async def run() -> None:
        await FlagStore(url).add(flag)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def request_ids(url: URL) -> list[str]:
    async def run() -> list[str]:
        store = FlagStore(url)
        stored = await store.unlearned(limit=1000)
        await store.close()
        return [flag.request_id for flag in stored]

    return asyncio.run(run())


def test_a_process_killed_after_add_has_lost_nothing(database: URL, flag: Flag) -> None:
    process = PROCESSES.Process(target=add_and_be_killed, args=(database, flag))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert request_ids(database) == [flag.request_id]


def test_several_server_processes_add_at_once(database: URL, flag: Flag) -> None:
    processes = [
        PROCESSES.Process(target=add_some, args=(database, replace(flag, request_id=name), 25))
        for name in "abc"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert sorted(request_ids(database)) == ["a"] * 25 + ["b"] * 25 + ["c"] * 25


async def test_postgresql_closing_every_connection_costs_nothing(
    postgres_socket: Path, flag: Flag
) -> None:
    url = parse_url(f"postgresql://setback@/postgres?host={postgres_socket}")
    await asyncio.to_thread(migrate.upgrade, url)
    store = FlagStore(url)
    first = await store.add(flag)
    engine = connect(url)
    async with engine.begin() as other:
        closed = await other.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        assert closed.scalars().all() == [True]
    await engine.dispose()
    second = await store.add(flag)
    assert [one.id for one in await store.unlearned(limit=9)] == [first, second]
    await store.close()


async def test_a_locked_sqlite_file_is_reported_and_works_again(tmp_path: Path, flag: Flag) -> None:
    file = tmp_path / "setback.db"
    url = parse_url(f"sqlite:///{file}?timeout=0.2")
    await asyncio.to_thread(migrate.upgrade, url)
    store = FlagStore(url)
    rival = sqlite3.connect(file, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.add(flag)
    assert not await store.unlearned(limit=9), "reading waits for no writer"
    rival.execute("ROLLBACK")
    rival.close()
    number = await store.add(flag)
    assert [one.id for one in await store.unlearned(limit=9)] == [number]
    await store.close()
