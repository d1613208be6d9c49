"""The servers that share a database are seen over HTTP and in the console."""

from dataclasses import replace
from datetime import UTC, datetime

from tests.guard.store.test_replicas import FIRST
from tests.server.face import BASE_URL, Face


async def test_each_server_is_listed_with_what_it_serves(face: Face) -> None:
    now = datetime.now(UTC)
    store = face.app.state.setback.replicas
    await store.report(replace(FIRST, name="b:7", adapter=3, seen_at=now))
    await store.report(replace(FIRST, ready=False, seen_at=now))
    async with face.client(BASE_URL) as client:
        answer = (await client.get("/v1/guard/replicas")).json()
        page = (await client.get("/console/adapters")).text
    assert answer["object"] == "list"
    first, second = answer["data"]
    assert (first["name"], first["adapter"], first["ready"]) == ("a:1", None, False)
    assert second == {
        "object": "guard.replica",
        "name": "b:7",
        "started_at": int(FIRST.started_at.timestamp()),
        "seen_at": int(now.timestamp()),
        "ready": True,
        "adapter": 3,
        "model": "practice",
        "model_revision": "abc",
        "policy_hash": "123",
        "version": "0.1.0",
    }
    # The base alone is in force.
    assert page.count("not the one in force") == 1
    assert page.count("starting") == 1
    assert "b:7" in page
