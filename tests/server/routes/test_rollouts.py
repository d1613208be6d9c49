"""/v1/guard/rollouts and promotions with a share, over a real database."""

from collections.abc import AsyncIterator

import httpx
import pytest

from guard.store.rollouts import ArmCounts, RolloutCounts, ShadowCounts
from tests.guard.store.test_runs import begin
from tests.server.face import BASE_URL, Face


@pytest.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    """Adapters 1, which is active, 2 and 3, which was rejected."""
    for version in (1, 2, 3):
        await begin(face.runs)
        await face.registry.register(
            version=version, parent=None, model_revision="r", sha256=f"{version}" * 64
        )
    await face.registry.set_status(3, "rejected")
    await face.registry.activate(1, by="run 1", reason="passed")
    async with face.client(f"{BASE_URL}/v1/guard") as client:
        yield client


@pytest.mark.parametrize("share", ["5%", 0.05, "0.05"])
async def test_a_promotion_with_a_share_starts_a_rollout(
    client: httpx.AsyncClient, face: Face, share: object
) -> None:
    started = await client.post("/adapters/2/promote", json={"share": share, "reason": "careful"})
    body = started.json()
    assert (started.status_code, body["object"], body["id"]) == (200, "guard.rollout", 1)
    assert (body["version"], body["compared_with"], body["share"]) == (2, 1, 0.05)
    assert (body["by"], body["reason"], body["status"]) == ("local", "careful", "running")
    assert isinstance(body["created_at"], int)
    assert await face.registry.active() == 1
    again = await client.post("/adapters/2/promote", json={"share": 0.5})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "adapter_conflict")
    assert "setback adapters rollout stop" in again.json()["error"]["message"]


@pytest.mark.parametrize(
    ("version", "share", "status", "param", "message"),
    [
        (2, "5", 400, "share", "share: '5' is no share of requests; give one such as 5% or 0.05"),
        (2, 1, 400, "share", "such as 5% or 0.05"),
        (2, [0.5], 400, "share", "such as 5% or 0.05"),
        (1, 0.5, 409, None, "Adapter 1 is active already"),
        (3, 0.5, 409, None, "Adapter 3 was rejected"),
        (9, 0.5, 404, None, "no adapter 9"),
    ],
)
async def test_what_cannot_be_rolled_out_is_named(
    client: httpx.AsyncClient,
    version: int,
    share: object,
    status: int,
    param: str | None,
    message: str,
) -> None:
    refused = await client.post(f"/adapters/{version}/promote", json={"share": share})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (status, param)
    assert message in error["message"]
    assert (await client.get("/rollouts")).json()["data"] == []


async def test_rollouts_are_listed_with_their_figures(
    client: httpx.AsyncClient, face: Face
) -> None:
    store = face.app.state.setback.rollout_store
    for _ in range(3):
        number = (await store.start(2, share=0.5, by="ada", reason="")).id
        await store.stop(by="ada", reason="")
    arm = ArmCounts(100, 100, 5, 5, 0, 100, 1.0, 0.1, 2.0, 0.05)
    await store.add(number, RolloutCounts(arm, arm, ShadowCounts(10, 1, 2, 3)))
    first = (await client.get("/rollouts", params={"limit": 2})).json()
    assert [one["id"] for one in first["data"]] == [3, 2]
    assert (first["has_more"], first["last_id"]) == (True, 2)
    rest = (await client.get("/rollouts", params={"after": 2})).json()
    assert [one["id"] for one in rest["data"]] == [1]
    shown, empty = first["data"]
    assert shown["outcome"] == "stopped by ada"
    assert shown["counts"]["new"]["answers"] == 100
    assert shown["counts"]["shadow"] == {"judged": 10, "both": 1, "only_new": 2, "only_old": 3}
    flagged = shown["figures"]["flagged"]
    assert (flagged["old"], flagged["new"], flagged["change"], flagged["limit"]) == (
        *(0.05, 0.05, 0.0, 0.05),
    )
    assert flagged["low"] < 0 < flagged["high"]
    assert empty["figures"]["seconds a token"] == {
        **dict.fromkeys(("old", "new", "change", "low", "high")),
        "limit": 1.3,
    }


async def test_a_rollout_is_stopped(client: httpx.AsyncClient) -> None:
    nothing = await client.post("/rollouts/stop", json={})
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "adapter_conflict")
    await client.post("/adapters/2/promote", json={"share": 0.5})
    stopped = (await client.post("/rollouts/stop", json={"reason": "no"})).json()
    assert (stopped["status"], stopped["outcome"]) == ("stopped", "stopped by local: no")


async def test_reviewers_may_look_but_not_stop(client: httpx.AsyncClient, face: Face) -> None:
    headers = {"authorization": f"Bearer {await face.key('review')}"}
    assert (await client.get("/rollouts", headers=headers)).status_code == 200
    assert (await client.post("/rollouts/stop", json={}, headers=headers)).status_code == 403
