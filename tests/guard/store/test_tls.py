"""TLS to a real PostgreSQL with certificates of the test's own: what is encrypted, what is refused
and in which words."""

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from guard.errors import StoreUnavailable
from guard.store.database import connect, store_errors
from guard.store.flags import Flag, FlagStore
from guard.store.url import parse_url
from server.cli.main import app
from tests.certificates import Authority
from tests.ports import free_port
from tests.postgres import Postgres, hand_over, missing_programs, own_folder

PASSWORD = "gn0me-s3cret"
ACCESS = """
local   all all       trust
hostssl all with_cert 127.0.0.1/32 cert
hostssl all all       127.0.0.1/32 scram-sha-256
"""
"""Over TCP nobody gets in without TLS."""


@dataclass(frozen=True)
class Encrypted:
    """A PostgreSQL that takes TLS only, as localhost on loopback. `root` signed it and the client's
    certificate; `other_root` signed nothing."""

    port: int
    root: Path
    other_root: Path
    client_certificate: Path
    client_key: Path

    def url(self, options: str, host: str = "localhost", user: str = "guard") -> str:
        password = f":{PASSWORD}" if user == "guard" else ""
        return f"postgresql://{user}{password}@{host}:{self.port}/setback?{options}"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)} on PATH")
    trusted = tmp_path_factory.mktemp("trusted")
    authority = Authority.create("Our root")
    with own_folder("setback-tls-") as folder:
        root = authority.write_root(folder / "root.crt")
        certificate, key = authority.write_signed(folder, "localhost")
        hand_over(key)
        settings = ("ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}")
        server = Postgres(folder, free_port(), (*settings, f"ssl_ca_file={root}"))
        server.create()
        access = folder / "data" / "pg_hba.conf"
        access.write_text(ACCESS)
        server.start()
        try:
            asyncio.run(
                server.execute(
                    f"CREATE ROLE guard LOGIN PASSWORD '{PASSWORD}'",
                    "CREATE ROLE with_cert LOGIN IN ROLE guard",
                    "CREATE DATABASE setback OWNER guard",
                )
            )
            yield Encrypted(
                server.port or 0,
                root,
                Authority.create("Another root").write_root(trusted / "other.crt"),
                *authority.write_signed(trusted, "with_cert"),
            )
        finally:
            server.stop()


def upgrade(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Runs `setback db upgrade`. Returns its exit code and all that it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DATABASE_URL", url)
    result = CliRunner().invoke(app, ["db", "upgrade"], env={"COLUMNS": "400"})
    return result.exit_code, result.output


async def query(url: str, statement: str) -> tuple[object, ...]:
    """Returns the first row."""
    parsed = parse_url(url)
    engine = connect(parsed)
    try:
        with store_errors(parsed):
            async with engine.connect() as connection:
                return tuple((await connection.execute(text(statement))).one())
    finally:
        await engine.dispose()


ENCRYPTION = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def test_a_verified_server_is_migrated_and_keeps_flags(
    postgres: Encrypted, flag: Flag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(f"sslmode=verify-full&sslrootcert={postgres.root}&channel_binding=require")
    code, output = upgrade(url, tmp_path, monkeypatch)
    assert (code, "is at revision" in output) == (0, True), output
    assert PASSWORD not in output

    async def store_and_read() -> list[str]:
        store = FlagStore(parse_url(url))
        await store.add(flag)
        stored = await store.unlearned(limit=10)
        await store.close()
        return [flag.request_id for flag in stored]

    assert asyncio.run(store_and_read()) == [flag.request_id]


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
async def test_these_modes_encrypt_without_verifying(postgres: Encrypted, mode: str) -> None:
    encrypted, version = await query(postgres.url(f"sslmode={mode}", host="127.0.0.1"), ENCRYPTION)
    assert (encrypted, version) == (True, "TLSv1.3")


async def test_the_newest_version_of_tls_may_be_limited(postgres: Encrypted) -> None:
    url = postgres.url("sslmode=require&ssl_max_protocol_version=TLSv1.2")
    assert await query(url, ENCRYPTION) == (True, "TLSv1.2")


async def test_a_client_certificate_is_as_good_as_a_password(postgres: Encrypted) -> None:
    options = (
        f"sslmode=verify-full&sslrootcert={postgres.root}"
        f"&sslcert={postgres.client_certificate}&sslkey={postgres.client_key}"
    )
    assert await query(postgres.url(options, user="with_cert"), "SELECT current_user") == (
        "with_cert",
    )
    with pytest.raises(StoreUnavailable, match="client certificate"):
        await query(postgres.url("sslmode=require", user="with_cert"), ENCRYPTION)


# A connection that is refused while TLS begins is left to the garbage collector by its driver.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("options", "host", "message"),
    [
        ("sslmode=verify-full&sslrootcert={other}", "localhost", "certificate verify failed"),
        ("sslrootcert={other}", "localhost", "certificate verify failed"),
        ("sslrootcert=system", "localhost", "certificate verify failed"),
        ("sslmode=verify-full&sslrootcert={root}", "127.0.0.1", "not valid for '127.0.0.1'"),
        ("sslmode=disable", "localhost", "no encryption"),
    ],
)
def test_another_server_or_no_encryption_is_refused_without_the_password(
    postgres: Encrypted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    host: str,
    message: str,
) -> None:
    options = options.format(root=postgres.root, other=postgres.other_root)
    code, output = upgrade(postgres.url(options, host=host), tmp_path, monkeypatch)
    gc.collect()
    assert code == 1
    assert message in output
    assert f"guard:***@{host}:{postgres.port}/setback" in output
    assert PASSWORD not in output


async def test_the_root_alone_verifies_the_certificate_and_not_the_name(
    postgres: Encrypted,
) -> None:
    url = postgres.url(f"sslrootcert={postgres.root}", host="127.0.0.1")
    assert await query(url, ENCRYPTION) == (True, "TLSv1.3")
