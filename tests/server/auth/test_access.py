"""No route answers without its role."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import State

from guard.store.keys import ROLES, KeyStore, Role
from server.auth.access import Access, AccessMiddleware, caller_of, is_local, role_of
from server.auth.sessions import Sessions
from server.routes.open import CANNOT_GENERATE, CONSOLE, GUARDED, REFINE, REVIEW
from tests.databases import migrated_file

EVERY_ROUTE = sorted(GUARDED | REFINE | REVIEW | CONSOLE | CANNOT_GENERATE)
FOR_ALL = {
    # Probes; what a browser needs to log in; and the refine routes, which have their own token.
    *("/health", "/metrics", "/ping", "/ready"),
    *("/console/login", "/console/static/{name}"),
    *REFINE,
}
REVIEWERS_CHANGE = {
    "/v1/guard/flags/label",
    "/v1/guard/flags/{flag_id}/label",
    "/console/flags/{flag_id}/label",
    "/console/logout",
}


def needed(method: str, path: str) -> Role | None:
    """Reviewers read and label, admins change the rest, and generation needs a key."""
    if path in FOR_ALL:
        return None
    if path not in REVIEW | CONSOLE:
        return "call"
    return "review" if method == "GET" or path in REVIEWERS_CHANGE else "admin"


METHODS = ("GET", "POST", "DELETE")


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[KeyStore]:
    url = await asyncio.to_thread(migrated_file, tmp_path / "keys.db")
    keys = KeyStore(url)
    yield keys
    await keys.close()


async def caller(request: Request) -> str:
    return caller_of(request)


def serving(access: Access) -> httpx.AsyncClient:
    """An application that answers every path with the caller's name."""
    app = FastAPI(openapi_url=None)
    sessions = Sessions("secret of the sessions")
    app.state = State({"setback": SimpleNamespace(access=access, sessions=sessions)})
    app.add_api_route("/{path:path}", caller, methods=[*METHODS])
    app.add_middleware(AccessMiddleware)
    transport: Any = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize("local", [True, False])
async def test_every_route_wants_its_role(keys: KeyStore, local: bool) -> None:
    secrets = {role: (await keys.make(role, role, by="ada"))[1] for role in ROLES}
    access = Access(keys, local=local)
    await access.refresh()
    async with serving(access) as client:
        for method, path in product(METHODS, EVERY_ROUTE):
            role = needed(method, path)
            assert role_of(method, path) == role, (method, path)
            refused = 303 if path in CONSOLE else 401
            got = (await client.request(method, path)).status_code
            assert got == (refused if role else 200), (method, path)
            for shown, secret in secrets.items():
                headers = {"authorization": f"Bearer {secret}"}
                got = (await client.request(method, path, headers=headers)).status_code
                allowed = role is None or ROLES.index(shown) >= ROLES.index(role)
                assert got == (200 if allowed else 403), (method, path, shown)


async def test_refusals_have_openais_shape(keys: KeyStore) -> None:
    _, secret = await keys.make("ci", "call", by="ada")
    access = Access(keys, local=True)
    await access.refresh()
    async with serving(access) as client:
        none = await client.get("/v1/models")
        wrong = await client.get("/v1/guard/flags", headers={"authorization": f"Bearer {secret}"})
    assert none.status_code == 401
    assert none.headers["www-authenticate"] == "Bearer"
    assert none.json()["error"]["code"] == "invalid_api_key"
    assert "setback keys make" in none.json()["error"]["message"]
    assert wrong.json()["error"]["code"] == "insufficient_permissions"
    assert "needs review" in wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer {}"}, {"authorization": "bearer {}"}, {"x-api-key": "{}"}]
)
async def test_a_key_may_be_shown_as_either_client_does(
    keys: KeyStore, headers: dict[str, str]
) -> None:
    key, secret = await keys.make("ci", "call", by="ada")
    access = Access(keys, local=False)
    await access.refresh()
    shown = {name: value.format(secret) for name, value in headers.items()}
    async with serving(access) as client:
        answered = await client.get("/v1/models", headers=shown)
    assert answered.json() == f"key {key.id} (ci)"


async def test_without_keys_a_server_is_open_to_its_machine_only(keys: KeyStore) -> None:
    here, anywhere = Access(keys, local=True), Access(keys, local=False)
    async with serving(here) as client:
        assert (await client.get("/v1/guard/flags")).json() == "local"
    async with serving(anywhere) as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_revoking_the_last_key_closes_the_server(keys: KeyStore) -> None:
    key, secret = await keys.make("ci", "admin", by="ada")
    access = Access(keys, local=True)
    await access.refresh()
    headers = {"authorization": f"Bearer {secret}"}
    async with serving(access) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        await keys.revoke(key.id, by="ada")
        await access.refresh()
        assert (await client.get("/v1/models", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("options", "local"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "127.8.8.8"}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": None}, False),
        ({"host": "10.0.0.7"}, False),
        ({"host": "example.com"}, False),
        ({"host": None, "uds": "/tmp/socket"}, True),
        ({"host": "0.0.0.0", "api_key": ["k"]}, True),
    ],
)
def test_which_servers_others_cannot_reach(options: dict[str, Any], local: bool) -> None:
    assert is_local(Namespace(**({"uds": None, "api_key": None} | options))) is local
