"""The stores behind a real PgBouncer that gives each transaction another connection."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from guard.errors import LeaseHeld
from guard.store import migrate
from guard.store.flags import Flag, FlagStore
from guard.store.leases import Leases
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from tests import pgbouncer
from tests.postgres import Postgres

FLAGS = 200


@pytest.fixture
def pooled(postgres_socket: Path, tmp_path: Path) -> Iterator[URL]:
    """A database that is migrated through PgBouncer."""
    if not pgbouncer.is_installed():
        pytest.skip("PgBouncer is not installed")
    name = tmp_path.name.lower()
    asyncio.run(Postgres(postgres_socket).create_database(name))
    with pgbouncer.pooling(postgres_socket) as url:
        database = parse_url(url.format(name=name))
        migrate.upgrade(database)
        yield database


async def test_many_flags_at_once_are_stored_and_searched(pooled: URL, flag: Flag) -> None:
    stores = [FlagStore(pooled) for _ in range(3)]
    reviews = ReviewStore(pooled)
    try:
        await asyncio.gather(
            *(
                stores[number % 3].add(replace(flag, request_id=f"chatcmpl-{number}"))
                for number in range(FLAGS)
            )
        )
        stored = await reviews.page(Filter(), FLAGS + 1)
        matching = await reviews.page(Filter(text="gnome"), FLAGS + 1)
    finally:
        for store in (*stores, reviews):
            await store.close()
    assert {flag.request_id for flag in stored} == {f"chatcmpl-{n}" for n in range(FLAGS)}
    assert len(matching) == FLAGS


async def test_one_of_many_gets_a_lease(pooled: URL) -> None:
    leases = [Leases(pooled) for _ in range(8)]
    try:
        outcomes = await asyncio.gather(
            *(lease.acquire("refine", "host", ttl_s=60) for lease in leases), return_exceptions=True
        )
    finally:
        for lease in leases:
            await lease.close()
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, LeaseHeld) for outcome in outcomes) == len(leases) - 1
