"""Keys and the audit trail, on SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import URL, text

from guard.errors import KeyUnknown
from guard.store.adapters import AdapterStore
from guard.store.audit import AuditStore
from guard.store.database import connect
from guard.store.flags import Flag, FlagStore
from guard.store.keys import ROLES, KeyStore, Role, find
from guard.store.review import Filter, Label, ReviewStore


@pytest.fixture
async def keys(database: URL) -> AsyncIterator[KeyStore]:
    keys = KeyStore(database)
    yield keys
    await keys.close()


async def trail(database: URL) -> list[tuple[str, str, str]]:
    """Returns actor, event and subject of each entry, oldest first."""
    store = AuditStore(database)
    entries = await store.list(limit=100)
    await store.close()
    return [(entry.actor, entry.event, entry.subject) for entry in reversed(entries)]


async def test_a_key_is_found_by_its_secret_alone(keys: KeyStore) -> None:
    first, secret = await keys.make("ci", "call", by="ada")
    await keys.make("console", "admin", by="ada")
    known = await keys.list()
    assert find(known, secret) == first
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), first.sha256, "\ud800"):
        assert find(known, wrong) is None


async def test_a_secret_is_not_stored(database: URL, keys: KeyStore) -> None:
    key, secret = await keys.make("ci", "call", by="ada", requests_per_minute=5)
    engine = connect(database)
    async with engine.connect() as connection:
        rows = [*await connection.execute(text("SELECT * FROM keys"))]
        rows += [*await connection.execute(text("SELECT * FROM audit"))]
    await engine.dispose()
    assert secret.startswith("sb-")
    assert len(secret) > 40
    assert secret[3:] not in str(rows)
    assert secret.endswith(key.hint)
    assert key.requests_per_minute == 5


async def test_a_revoked_key_is_found_no_more(database: URL, keys: KeyStore) -> None:
    key, secret = await keys.make("ci", "call", by="ada")
    revoked = await keys.revoke(key.id, by="bob")
    again = await keys.revoke(key.id, by="eve")
    assert revoked.revoked_at is not None
    assert again == revoked
    assert find(await keys.list(), secret) is None
    assert await trail(database) == [
        ("ada", "key.made", f"key {key.id}"),
        ("bob", "key.revoked", f"key {key.id}"),
    ]
    with pytest.raises(KeyUnknown, match="no key 77"):
        await keys.revoke(77, by="bob")


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_includes_the_roles_before_it(keys: KeyStore, role: Role) -> None:
    key, _ = await keys.make("k", role, by="ada")
    assert [other for other in ROLES if key.may(other)] == list(ROLES[: ROLES.index(role) + 1])


async def test_labels_deletions_and_promotions_leave_a_trail(
    database: URL, store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    number = await store.add(flag)
    await reviews.label([number], Label(review="confirmed", answer="no gnome", note="gnome"), "ada")
    await reviews.delete(Filter(user_hash=flag.user_hash), by="bob")
    await store.add(replace(flag, user_hash=None))
    adapters = AdapterStore(database)
    await adapters.activate(None, by="eve", reason="back to the base")
    await adapters.close()
    assert await trail(database) == [
        ("ada", "flag.labelled", f"flag {number}"),
        ("bob", "flags.deleted", f"flags {number} to {number}"),
        ("eve", "adapter.activated", "the base"),
    ]
    audited = AuditStore(database)
    assert "gnome" not in str(await audited.list(limit=9))
    await audited.close()
