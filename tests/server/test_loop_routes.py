"""/v1/guard/runs, adapters and policy over a real database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from guard.errors import GuardError
from guard.policy import load_policy
from guard.store import migrate
from guard.store.adapters import AdapterStore
from guard.store.database import parse_url
from guard.store.flags import Flag, FlagStore
from guard.store.runs import RunStore
from server import loop_routes
from server.errors import BadRequest, on_bad_request, on_guard_error
from tests.guard.store.test_runs import begin


@pytest.fixture
async def client(tmp_path: Path, flag: Flag) -> AsyncIterator[httpx.AsyncClient]:
    """Three runs: 1 and 2 made adapters, of which 1 is in force; 3 is under way with flag 1."""
    url = parse_url(f"sqlite:///{tmp_path}/flags.db")
    await asyncio.to_thread(migrate.upgrade, url)
    flags, runs, registry = FlagStore(url), RunStore(url), AdapterStore(url)
    number = await flags.add(flag)
    for version, parent in ((1, None), (2, 1)):
        await begin(runs)
        await registry.register(
            version=version, parent=parent, model_revision="r", sha256=f"{version}" * 64
        )
        measures: dict[str, Any] = {"candidate": {"figures": []}}
        await runs.finish(version, "promoted", measures=measures, reasons=["better"])
    await runs.set_flags(1, {number: "train"})
    await begin(runs)
    await registry.activate(1, by="run 1", reason="passed")
    app = FastAPI()
    app.include_router(loop_routes.router)
    app.add_exception_handler(GuardError, on_guard_error)
    app.add_exception_handler(BadRequest, on_bad_request)
    app.state.setback = SimpleNamespace(runs=runs, registry=registry, policy=load_policy())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/guard") as client:
        yield client
    for store in (flags, runs, registry):
        await store.close()


async def test_runs_are_listed_and_shown(client: httpx.AsyncClient) -> None:
    first = (await client.get("/runs", params={"limit": 2})).json()
    assert [run["id"] for run in first["data"]] == [3, 2]
    assert first["has_more"] is True
    rest = (await client.get("/runs", params={"after": first["last_id"]})).json()
    assert [(run["id"], run["status"]) for run in rest["data"]] == [(1, "promoted")]
    shown = (await client.get("/runs/1")).json()
    assert shown["flags"] == {"1": "train"}
    assert shown["reasons"] == ["better"]
    assert isinstance(shown["created_at"], int)
    missing = await client.get("/runs/9")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "run_unknown"


async def test_adapters_are_listed_with_the_one_in_force(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/adapters")).json()
    assert [(each["version"], each["active"]) for each in listed["data"]] == [(2, False), (1, True)]
    assert (listed["active"], listed["first_id"], listed["last_id"]) == (1, 2, 1)
    below = (await client.get("/adapters", params={"after": 2})).json()
    assert [each["version"] for each in below["data"]] == [1]


async def test_an_adapter_is_shown_with_its_lineage(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/adapters/2")).json()
    assert shown["lineage"] == {"runs": [2, 1], "flags": [1]}
    assert shown["measures"] == {"candidate": {"figures": []}}
    assert shown["activations"] == []
    assert (await client.get("/adapters/1")).json()["activations"][0]["by"] == "run 1"
    assert (await client.get("/adapters/9")).status_code == 404


async def test_an_adapter_is_promoted_and_rolled_back(client: httpx.AsyncClient) -> None:
    promoted = await client.post("/adapters/2/promote", json={"reason": "by hand"})
    assert (promoted.json()["version"], promoted.json()["by"]) == (2, "local")
    assert promoted.json()["reason"] == "by hand"
    back = await client.post("/adapters/rollback", json={})
    assert back.json()["version"] == 1
    assert (await client.post("/adapters/rollback", json={})).json()["version"] is None
    nowhere = await client.post("/adapters/rollback", json={})
    assert nowhere.status_code == 409
    assert nowhere.json()["error"]["code"] == "adapter_conflict"
    assert (await client.post("/adapters/9/promote", json={})).status_code == 404
    wrong = await client.post("/adapters/2/promote", json={"why": "x"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "why")


async def test_the_policy_is_shown_with_its_hash(client: httpx.AsyncClient) -> None:
    policy, shown = load_policy(), (await client.get("/policy")).json()
    assert shown["hash"] == policy.hash
    assert shown["refusal"] == policy.refusal
    assert shown["rules"]["hate"] == {"threshold": 0.5, "action": "revise"}
