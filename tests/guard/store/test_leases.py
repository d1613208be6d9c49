"""Leases: one holder at a time, and expiry."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import URL

from guard.errors import LeaseHeld, LeaseLost
from guard.store.database import LOCK_TIMEOUT_S
from guard.store.leases import Leases
from guard.tasks import spawn


@pytest.fixture
async def leases(database: URL) -> AsyncIterator[Leases]:
    store = Leases(database)
    yield store
    await store.close()


async def test_a_held_lease_is_refused_with_its_holder(leases: Leases) -> None:
    await leases.acquire("refine", "host-a 7", ttl_s=60)
    with pytest.raises(LeaseHeld, match="host-a 7 holds the lease 'refine'") as refused:
        await leases.acquire("refine", "host-b 8", ttl_s=60)
    assert refused.value.holder == "host-a 7"
    assert refused.value.until is not None
    assert refused.value.until > datetime.now(UTC)
    await leases.acquire("other", "host-b 8", ttl_s=60)


async def test_a_released_lease_is_free(leases: Leases) -> None:
    token = await leases.acquire("refine", "a", ttl_s=60)
    await leases.release("refine", token)
    assert await leases.acquire("refine", "b", ttl_s=60) != token


async def test_the_holder_of_a_lease_can_be_queried(leases: Leases) -> None:
    assert await leases.held("refine") is None
    token = await leases.acquire("refine", "host-a 7", ttl_s=60)
    held = await leases.held("refine")
    assert held is not None
    with pytest.raises(LeaseHeld) as refused:
        await leases.acquire("refine", "host-b 8", ttl_s=60)
    assert (str(held), held.holder) == (str(refused.value), "host-a 7")
    assert await leases.held("other") is None
    await leases.release("refine", token)
    assert await leases.held("refine") is None
    await leases.acquire("refine", "dead", ttl_s=0)
    assert await leases.held("refine") is None


async def test_an_expired_lease_may_be_taken_and_is_then_lost(leases: Leases) -> None:
    stale = await leases.acquire("refine", "dead", ttl_s=0)
    token = await leases.acquire("refine", "alive", ttl_s=60)
    with pytest.raises(LeaseLost, match="was lost"):
        await leases.renew("refine", stale, ttl_s=60)
    await leases.release("refine", stale)
    await leases.renew("refine", token, ttl_s=60)


async def test_renewing_keeps_a_lease(leases: Leases) -> None:
    token = await leases.acquire("refine", "a", ttl_s=0)
    await leases.renew("refine", token, ttl_s=60)
    with pytest.raises(LeaseHeld):
        await leases.acquire("refine", "b", ttl_s=60)


async def test_of_many_at_once_one_gets_it(database: URL) -> None:
    stores = [Leases(database) for _ in range(8)]
    tries = (store.acquire("refine", f"p{i}", ttl_s=60) for i, store in enumerate(stores))
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 1
    assert sum(isinstance(result, LeaseHeld) for result in results) == 7
    for store in stores:
        await store.close()


async def test_one_cancelled_amid_a_statement_keeps_nobody_waiting(leases: Leases) -> None:
    for turns in range(60):
        token = await leases.acquire(f"{turns}", "a", ttl_s=60)
        renewal = spawn(leases.renew(f"{turns}", token, ttl_s=60))
        for _ in range(turns):
            await asyncio.sleep(0)
        renewal.cancel()
        await asyncio.wait_for(leases.release(f"{turns}", token), LOCK_TIMEOUT_S / 2)
        await asyncio.wait({renewal})
