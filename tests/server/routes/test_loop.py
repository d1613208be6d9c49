"""/v1/guard/runs and adapters over a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from guard.store.flags import Flag
from guard.tasks import spawn
from tests.guard.store.test_runs import begin
from tests.server.face import BASE_URL, Face
from tests.server.jobs.test_run_control import face_with, job


@pytest.fixture
async def client(face: Face, flag: Flag) -> AsyncIterator[httpx.AsyncClient]:
    """Three runs: 1 and 2 made adapters, of which 1 is active; 3 is running with flag 1."""
    number = await face.flags.add(flag)
    for version, parent in ((1, None), (2, 1)):
        await begin(face.runs)
        await face.registry.register(
            version=version, parent=parent, model_revision="r", sha256=f"{version}" * 64
        )
        measures: dict[str, Any] = {"candidate": {"figures": []}}
        await face.runs.finish(version, "promoted", measures=measures, reasons=["better"])
    await face.runs.set_flags(1, {number: "train"})
    await begin(face.runs)
    await face.registry.activate(1, by="run 1", reason="passed")
    async with face.client(f"{BASE_URL}/v1/guard") as client:
        yield client


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
    assert [(adapter["version"], adapter["active"]) for adapter in listed["data"]] == [
        (2, False),
        (1, True),
    ]
    assert (listed["active"], listed["first_id"], listed["last_id"]) == (1, 2, 1)
    below = (await client.get("/adapters", params={"after": 2})).json()
    assert [adapter["version"] for adapter in below["data"]] == [1]


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


async def test_a_run_is_started_followed_and_cancelled(database: URL) -> None:
    async with face_with(database, *job(database, "work")) as face, face.client() as client:
        started = (await client.post("/v1/guard/runs")).json()
        assert (started["object"], started["id"], started["status"]) == ("guard.run", 1, "running")
        again = await client.post("/v1/guard/runs")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "lease_held")
        following = spawn(client.get("/v1/guard/runs/1/events"))
        cancelled = (await client.post("/v1/guard/runs/1/cancel")).json()
        assert (cancelled["id"], cancelled["cancelled_by"]) == (1, "local")
        response = await following
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.text.endswith("\n\ndata: [DONE]\n\n")
        *events, _ = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        statuses = [json.loads(event)["status"] for event in events]
        assert statuses[-1] == "cancelled"
        assert set(statuses[:-1]) == {"running"}
        assert json.loads(events[-1])["reasons"] == ["cancelled by local"]
        over = await client.post("/v1/guard/runs/1/cancel")
        assert (over.status_code, over.json()["error"]["code"]) == (409, "run_over")


async def test_a_job_that_dies_at_once_is_reported(database: URL) -> None:
    async with face_with(database, *job(database, "die")) as face, face.client() as client:
        failed = await client.post("/v1/guard/runs")
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "run_not_started"
    assert "no server at that address" in failed.json()["error"]["message"]


@pytest.mark.parametrize("run", ["9", "0", "x", "99999999999999999999"])
async def test_an_unknown_run_is_neither_followed_nor_cancelled(
    client: httpx.AsyncClient, run: str
) -> None:
    status, code = (404, "run_unknown") if run == "9" else (400, "invalid_value")
    followed = await client.get(f"/runs/{run}/events")
    assert (followed.status_code, followed.json()["error"]["code"]) == (status, code)
    assert followed.headers["content-type"] == "application/json"


async def test_a_run_that_has_ended_is_sent_once(client: httpx.AsyncClient) -> None:
    first, done, end = (await client.get("/runs/2/events")).text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["status"] == "promoted"
    assert (done, end) == ("data: [DONE]", "")


async def test_a_follower_may_disconnect(face: Face) -> None:
    run = await begin(face.runs)
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    hung_up = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await hung_up.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/v1/guard/runs/{run.id}/events",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    following = spawn(face.app(scope, receive, sent.put))  # type: ignore[arg-type]
    start, first = await sent.get(), await sent.get()
    assert (start["status"], first["more_body"]) == (200, True)
    assert json.loads(first["body"].removeprefix(b"data: "))["status"] == "running"
    hung_up.set()
    await asyncio.wait_for(following, timeout=30)
