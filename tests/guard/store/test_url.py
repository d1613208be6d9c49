"""Database URLs as people and hosting services write them: what the driver gets, and refusals."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from guard.store.url import engine_arguments, parse_url, without_driver


@pytest.mark.parametrize(
    ("text", "driver", "database"),
    [
        ("sqlite:///data/setback.db", "sqlite+aiosqlite", "data/setback.db"),
        ("sqlite+aiosqlite:////var/setback.db", "sqlite+aiosqlite", "/var/setback.db"),
        ("postgres://me:pw@host:5433/flags", "postgresql+asyncpg", "flags"),
        ("postgresql://host/flags", "postgresql+asyncpg", "flags"),
        ("postgresql+psycopg2://host/flags", "postgresql+asyncpg", "flags"),
        # Files and mounted secrets end with a line break.
        (" postgresql://host/flags\n", "postgresql+asyncpg", "flags"),
        ("sqlite:///setback.db\r\n", "sqlite+aiosqlite", "setback.db"),
    ],
)
def test_usual_forms_get_the_async_driver(text: str, driver: str, database: str) -> None:
    url = parse_url(text)
    assert (url.drivername, url.database) == (driver, database)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("", {"timeout": 5}),
        ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=true", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=verify-full", {"dsn": "postgresql://?sslmode=verify-full"}),
        ("connect_timeout=10", {"timeout": 10}),
        ("connect_timeout=0", {"timeout": None}),
        ("application_name=guard", {"server_settings": {"application_name": "guard"}}),
        ("options=-c%20work_mem%3D8MB", {"server_settings": {"options": "-c work_mem=8MB"}}),
        (
            "target_session_attrs=read-write",
            {"dsn": "postgresql://?target_session_attrs=read-write"},
        ),
        ("channel_binding=prefer", {"timeout": 5}),
        (
            "sslmode=verify-full&channel_binding=require",
            {"dsn": "postgresql://?sslmode=verify-full"},
        ),
        ("pgbouncer=true", {"statement_cache_size": 0, "prepared_statement_cache_size": 0}),
    ],
)
def test_urls_from_postgresql_hosting_services_are_accepted(
    options: str, arguments: dict[str, Any]
) -> None:
    url, kwargs = engine_arguments(parse_url(f"postgres://me:pw@h/d?{options}"))
    assert kwargs.items() >= arguments.items()
    assert url.render_as_string(hide_password=False) == "postgresql+asyncpg://me:pw@h/d"


def test_named_roots_check_the_server(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.touch()
    _, kwargs = engine_arguments(parse_url(f"postgres://h/d?sslrootcert={roots}"))
    assert "sslmode=verify-ca" in kwargs["dsn"]
    assert f"sslrootcert={quote_plus(str(roots))}" in kwargs["dsn"]
    _, kwargs = engine_arguments(parse_url("postgres://h/d?sslmode=verify-full&sslrootcert=system"))
    assert "dsn" not in kwargs
    assert kwargs["ssl"].verify_mode is ssl.CERT_REQUIRED


def test_several_hosts_are_tried_in_order() -> None:
    url, kwargs = engine_arguments(
        parse_url("postgresql://me:pw@one:5433,two/d?target_session_attrs=primary")
    )
    _, connected = url.get_dialect()().create_connect_args(url)
    assert (connected["host"], connected["port"]) == (["one", "two"], [5433, 5432])
    assert kwargs["dsn"] == "postgresql://?target_session_attrs=primary"


def test_statements_behind_a_pooler_have_names_of_their_own() -> None:
    _, kwargs = engine_arguments(parse_url("postgres://h/d?pgbouncer=true"))
    name = kwargs["prepared_statement_name_func"]
    assert name() != name()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flags.db", "sqlite:///file.db"),
        ("", "sqlite:///file.db"),
        ("mysql://host/flags", "use sqlite or postgresql"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("postgres://h/d?keepalives=1", "unknown option 'keepalives'"),
        ("postgres://h/d?sslmode=bogus", "sslmode .* is one of allow, disable"),
        ("postgres://h/d?target_session_attrs=all", "target_session_attrs .* is one of any"),
        ("postgres://h/d?connect_timeout=soon", "connect_timeout .* whole number of seconds"),
        ("postgres://h/d?sslrootcert=/absent.pem", "sslrootcert .* cannot be read: /absent.pem"),
        ("postgres://h/d?sslmode=require&sslkey=/absent.key", "sslkey .* cannot be read"),
        ("postgres://h/d?sslrootcert=system&sslcert=/dev/null", "wrong option .*PEM"),
        (
            "postgres://h/d?sslrootcert=system&ssl_min_protocol_version=TLSv1.3",
            "ssl_min_protocol_version .* does not work with sslrootcert=system",
        ),
        ("postgres://h/d?channel_binding=require", "verify the server instead"),
        ("postgres://h/d?sslmode=require&channel_binding=require", "with sslmode=verify-full"),
        ("postgres://h:port/d", "sqlite:///file.db"),
        ("postgres://h:99999/d", "at most 65535"),
        ("postgres:///d?host=/run&port=abc", "wrong option.*'abc'"),
        ("postgres://h/d?prepared_statement_cache_size=abc", "wrong option.*'abc'"),
        ("sqlite:///file.db?mode=ro", "unknown option 'mode' .* use timeout"),
        ("sqlite:///file.db?timeout=soon", "timeout .* is a number of seconds above 0"),
        ("sqlite:///file.db?timeout=0", "timeout .* is a number of seconds above 0"),
    ],
)
def test_other_forms_are_refused_with_the_fix(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_url(text)


@pytest.mark.parametrize("password", ["pa@word", "pa/word", "pa#word", "pa?word", "pa@/#word"])
def test_an_unescaped_password_is_reported_and_not_shown(password: str) -> None:
    with pytest.raises(ValueError, match="write %40 for @, %2F for /") as raised:
        parse_url(f"postgresql://me:{password}@host/flags")
    assert "pa" not in str(raised.value).replace("part", "").replace("password", "")
    assert "word" not in str(raised.value).replace("password", "")


def test_an_escaped_password_reaches_the_driver_and_no_message() -> None:
    url = parse_url("postgresql://me:p%40%2F%23%3F@host/flags?sslpassword=s3cret")
    assert url.password == "p@/#?"
    assert without_driver(url) == "postgresql://me:***@host/flags"
