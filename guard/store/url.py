"""The database URL: what users may write and what the driver gets. Owns its forms, options and
validation, less TLS (tls.py). Opens no connection (database.py).

URLs from PostgreSQL hosting services work as pasted. asyncpg parses libpq's options from a DSN, so
they are passed to it in one; those it does not know are translated here.
"""

import math
import re
from collections.abc import Mapping, Set
from ssl import SSLError
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from guard.store.tls import SYSTEM, check_tls, take_system_context

CONNECT_TIMEOUT_S = 5
LARGEST_PORT = 65535

_POSTGRES_PORT = 5432
_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
_OLD_SSL = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
"""Values that JDBC and others write after ssl=."""
_CHOICES: Mapping[str, Set[str]] = {
    "sslmode": _SSL_MODES,
    "target_session_attrs": {
        "any",
        "primary",
        "standby",
        "read-write",
        "read-only",
        "prefer-standby",
    },
    "channel_binding": {"disable", "prefer", "require"},
    "pgbouncer": {"true", "false"},
}
_ENGINE_OPTIONS = {"host", "port", "prepared_statement_cache_size"}
_SESSION_OPTIONS = {"application_name", "options"}
_DSN_OPTIONS = {
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs"),
}
POSTGRES_OPTIONS = (
    _ENGINE_OPTIONS
    | _SESSION_OPTIONS
    | _DSN_OPTIONS
    | {"ssl", "connect_timeout", "channel_binding", "pgbouncer"}
)
SQLITE_OPTIONS = {"timeout"}

_POSTGRES = re.compile(r"^(?P<scheme>postgres[\w+]*)://(?P<rest>.*)$", re.IGNORECASE | re.DOTALL)


def parse_url(text: str) -> URL:
    """Returns the database URL with its async driver. Raises ValueError, which names the fix and
    shows no part of a password."""
    match = _POSTGRES.match(text.strip())
    if match is not None:
        return _postgres_url(_parsed(_with_listed_hosts(match["scheme"], match["rest"])))
    url = _parsed(text.strip())
    if url.get_backend_name() == "sqlite":
        return _sqlite_url(url)
    raise ValueError(f"{url.drivername!r} is not supported; use sqlite or postgresql")


def _parsed(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(
            "not a database URL; write sqlite:///file.db or postgresql://user:password@host/name"
        ) from None


def engine_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Returns SQLAlchemy's URL and the driver's arguments for a PostgreSQL URL from parse_url."""
    options = {name: str(value) for name, value in url.query.items() if name != "host"}
    engine_query = {name: value for name, value in url.query.items() if name in _ENGINE_OPTIONS}
    arguments: dict[str, Any] = {"timeout": _connect_timeout(options)}
    session = {name: options[name] for name in _SESSION_OPTIONS if name in options}
    if session:
        arguments["server_settings"] = session
    dsn = {name: options[name] for name in _DSN_OPTIONS if name in options}
    if dsn.get("sslrootcert") == SYSTEM:
        arguments["ssl"] = take_system_context(dsn)
    if dsn:
        arguments["dsn"] = f"postgresql://?{urlencode(dsn)}"
    if options.get("pgbouncer") == "true":
        # A pooler may use another server connection for each transaction, so statements are
        # prepared every time, under names that no other client uses.
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__setback_{uuid4().hex}__",
        }
    return url.set(query=engine_query), arguments


def without_driver(url: URL) -> str:
    """Returns the URL as the user wrote it, without the password and the options."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return plain.render_as_string(hide_password=True)


def _with_listed_hosts(scheme: str, rest: str) -> str:
    """Moves several hosts into options, as SQLAlchemy expects them."""
    credentials, at, location = rest.rpartition("@")
    if set("/#?@") & set(credentials):
        raise ValueError(
            "the user name or password of the database URL has a character that ends it: write "
            "%40 for @, %2F for /, %23 for # and %3F for ?"
        )
    hosts, slash, path = location.partition("/")
    if "," not in hosts:
        return f"{scheme}://{rest}"
    name, _, query = path.partition("?")
    host_options = [("host", _with_port(host)) for host in hosts.split(",")]
    options = "&".join(filter(None, (query, urlencode(host_options))))
    return f"{scheme}://{credentials}{at}{slash}{name}?{options}"


def _with_port(host: str) -> str:
    return host if re.search(r":\d+$", host) else f"{host}:{_POSTGRES_PORT}"


def _sqlite_url(url: URL) -> URL:
    if url.database in (None, "", ":memory:"):
        raise ValueError("SQLite in memory would lose its flags; name a file: sqlite:///file.db")
    _check_names(url, SQLITE_OPTIONS)
    if "timeout" in url.query and not _is_positive(url.query["timeout"]):
        raise ValueError("timeout in the database URL is a number of seconds above 0")
    return url.set(drivername="sqlite+aiosqlite")


def _postgres_url(url: URL) -> URL:
    _check_names(url, POSTGRES_OPTIONS)
    options = dict(url.query)
    if "ssl" in options:
        value = str(options.pop("ssl")).lower()
        options["sslmode"] = _OLD_SSL.get(value, value)
    if "sslrootcert" in options:
        # Naming root certificates implies verifying the server against them.
        system = options["sslrootcert"] == SYSTEM
        options.setdefault("sslmode", "verify-full" if system else "verify-ca")
    for name, choices in _CHOICES.items():
        if name in options and options[name] not in choices:
            raise ValueError(f"{name} in the database URL is one of {', '.join(sorted(choices))}")
    check_tls(options)
    if "connect_timeout" in options and not str(options["connect_timeout"]).isdecimal():
        raise ValueError("connect_timeout in the database URL is a whole number of seconds")
    if url.port is not None and url.port > LARGEST_PORT:
        raise ValueError(f"the port of the database URL is at most {LARGEST_PORT}")
    url = url.set(drivername="postgresql+asyncpg", query=options)
    try:
        url.get_dialect()().create_connect_args(engine_arguments(url)[0])
    except (ArgumentError, ValueError, SSLError) as error:
        raise ValueError(f"wrong option in the database URL: {error}") from error
    return url


def _check_names(url: URL, known: Set[str]) -> None:
    for name in url.query.keys() - known:
        usable = ", ".join(sorted(known))
        raise ValueError(f"unknown option {name!r} in the database URL; use {usable} or remove it")


def _connect_timeout(options: Mapping[str, str]) -> float | None:
    """Returns seconds; None for 0, which waits for ever, as in libpq."""
    return float(options.get("connect_timeout", CONNECT_TIMEOUT_S)) or None


def _is_positive(value: str | tuple[str, ...]) -> bool:
    try:
        return isinstance(value, str) and 0 < float(value) < math.inf
    except ValueError:
        return False
