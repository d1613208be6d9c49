"""The flag store on SQLite and PostgreSQL: what is added stays, whatever it is."""

import asyncio
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import URL

from guard.criteria import Place
from guard.errors import StoreUnavailable
from guard.store.database import connect
from guard.store.flags import Flag, FlagStore, StoredFlag, hash_user
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from tests.databases import migrated_file


async def test_a_flag_is_there_after_reopening(database: URL, flag: Flag) -> None:
    first = FlagStore(database)
    number = await first.add(flag)
    await first.close()

    second = FlagStore(database)
    stored = await second.get(number)
    await second.close()

    assert stored == StoredFlag(id=number, **vars(flag))


async def test_the_time_is_kept_in_utc(store: FlagStore, flag: Flag) -> None:
    elsewhere = datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=5)))
    stored = await store.get(await store.add(replace(flag, created_at=elsewhere)))
    assert stored is not None
    assert stored.created_at == elsewhere
    assert stored.created_at.tzinfo is UTC


async def test_a_time_without_zone_is_refused(store: FlagStore, flag: Flag) -> None:
    with pytest.raises(StoreUnavailable, match="without a zone"):
        await store.add(replace(flag, created_at=datetime(2026, 3, 1)))  # noqa: DTZ001


async def test_64_at_once_all_commit(store: FlagStore, flag: Flag) -> None:
    flags = [replace(flag, request_id=f"r{i}") for i in range(64)]
    numbers = await asyncio.gather(*(store.add(one) for one in flags))
    stored = await store.unlearned(limit=100)
    assert len(set(numbers)) == 64
    assert {one.request_id for one in stored} == {f"r{i}" for i in range(64)}


async def test_the_same_request_id_twice_leaves_two_flags(store: FlagStore, flag: Flag) -> None:
    await store.add(flag)
    await store.add(flag)
    assert len(await store.unlearned(limit=10)) == 2


@pytest.mark.parametrize("place", [Place.INPUT, Place.TOOL_RESULT])
async def test_a_flagged_input_is_kept_and_not_learned_from(
    store: FlagStore, reviews: ReviewStore, flag: Flag, place: Place
) -> None:
    await store.add(flag)
    number = await store.add(replace(flag, place=place, answer=""))
    assert [one.id for one in await reviews.page(Filter(place=place), 9)] == [number]
    assert [one.place for one in await store.unlearned(limit=9)] == [Place.OUTPUT]


async def test_a_cancelled_caller_loses_no_flag(store: FlagStore, flag: Flag) -> None:
    caller = asyncio.ensure_future(store.add(flag))
    await asyncio.sleep(0)  # let it begin, no more
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.close()
    assert len(await store.unlearned(limit=10)) == 1


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a\0b", "a\ufffdb"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("ends low \udc00", "ends low \ufffd"),
        ("a pair \ud83d\ude00", "a pair 😀"),
        ("emoji 👩‍👩‍👧 and \u202e marks", "emoji 👩‍👩‍👧 and \u202e marks"),
        ("", ""),
        ("x" * 2_000_000, "x" * 2_000_000),
    ],
    ids=["nul", "high", "low", "pair", "unicode", "empty", "long"],
)
async def test_odd_text_never_costs_a_flag(
    store: FlagStore, flag: Flag, sent: str, kept: str
) -> None:
    messages = [{"role": sent, "content": [{"type": "text", sent: sent}]}]
    odd = replace(flag, answer=sent, request_id=sent[:100], messages=messages, adapter=sent[:100])
    stored = await store.get(await store.add(odd))
    assert stored is not None
    assert stored.answer == kept
    assert stored.messages == [{"role": kept, "content": [{"type": "text", kept: kept}]}]
    assert stored.request_id == kept[:100]


async def test_odd_values_in_messages_are_kept_as_text(store: FlagStore, flag: Flag) -> None:
    message = {"role": "user", "content": (1, 2.5, True, None, float("nan"), Path("/x")), 5: "five"}
    stored = await store.get(await store.add(replace(flag, messages=[message])))  # type: ignore[list-item]
    assert stored is not None
    assert stored.messages == [
        {"role": "user", "content": [1, 2.5, True, None, "nan", "/x"], "5": "five"}
    ]


async def test_get_of_a_number_never_given_is_none(store: FlagStore) -> None:
    assert await store.get(12345) is None


async def test_the_salt_is_the_same_for_every_process(database: URL) -> None:
    stores = [FlagStore(database) for _ in range(2)]
    salts = [await store.user_salt() for store in stores]
    for store in stores:
        await store.close()
    assert salts[0] == salts[1]
    assert len(salts[0]) == 64


async def test_a_salt_that_is_gone_is_a_clear_error(database: URL) -> None:
    engine = connect(database)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM secrets")
    await engine.dispose()
    store = FlagStore(database)
    with pytest.raises(StoreUnavailable, match="SETBACK_USER_SALT"):
        await store.user_salt()
    await store.close()


async def test_check_passes_on_a_migrated_database(store: FlagStore) -> None:
    await store.check()


async def test_check_names_the_command_when_not_migrated(empty_database: str) -> None:
    store = FlagStore(parse_url(empty_database))
    with pytest.raises(StoreUnavailable, match="setback db upgrade"):
        await store.check()
    await store.close()


async def test_check_names_the_command_for_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "empty.db"
    file.touch()
    store = FlagStore(parse_url(f"sqlite:///{file}"))
    with pytest.raises(StoreUnavailable, match="not migrated; run `setback db upgrade`"):
        await store.check()
    await store.close()


async def test_a_file_deleted_meanwhile_is_noticed(tmp_path: Path, flag: Flag) -> None:
    url = await asyncio.to_thread(migrated_file, tmp_path / "setback.db")
    store = FlagStore(url)
    await store.add(flag)
    (tmp_path / "setback.db").unlink()
    with pytest.raises(StoreUnavailable, match="There is no database"):
        await store.add(flag)
    await store.close()


async def test_add_to_a_database_not_migrated_says_so(empty_database: str, flag: Flag) -> None:
    store = FlagStore(parse_url(empty_database))
    with pytest.raises(StoreUnavailable) as raised:
        await store.add(flag)
    assert flag.answer not in str(raised.value)
    await store.close()


async def test_check_names_a_revision_of_a_newer_version(database: URL) -> None:
    engine = connect(database)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '2999_01_01_x'")
    await engine.dispose()
    store = FlagStore(database)
    with pytest.raises(StoreUnavailable, match="2999_01_01_x.*newer Setback"):
        await store.check()
    await store.close()


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


async def test_an_unreachable_server_is_reported_soon_and_without_password(
    closed_port: int, flag: Flag
) -> None:
    store = FlagStore(parse_url(f"postgres://me:s3cret@127.0.0.1:{closed_port}/setback"))
    begun = time.monotonic()
    for operation in (store.check(), store.add(flag), store.unlearned(1)):
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{closed_port}") as raised:
            await operation
        assert "s3cret" not in str(raised.value)
    assert time.monotonic() - begun < 5
    await store.close()


async def test_a_server_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, flag: Flag
) -> None:
    monkeypatch.setattr("guard.store.url.CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        store = FlagStore(parse_url(f"postgresql://me@127.0.0.1:{port}/setback"))
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}"):
            await store.add(flag)
        await store.close()


async def test_wrong_password_and_missing_database_are_store_errors(postgres_socket: Path) -> None:
    store = FlagStore(parse_url(f"postgresql://setback@/absent?host={postgres_socket}"))
    with pytest.raises(StoreUnavailable, match='database "absent" does not exist'):
        await store.check()
    await store.close()


async def test_a_failed_write_quotes_nothing_of_the_answer(store: FlagStore, flag: Flag) -> None:
    broken = replace(flag, policy_hash=None)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable) as raised:
        await store.add(broken)
    assert "gnome" not in str(raised.value)
    assert await store.unlearned(limit=10) == []


def test_hash_user_depends_on_user_and_salt() -> None:
    hashes = {hash_user(user, salt) for user in ("ann", "bob") for salt in ("s1", "s2")}
    assert len(hashes) == 4
    assert hash_user("ann", "s1") == hash_user("ann", "s1")
    assert len(hash_user("\ud800", "s1")) == 64
