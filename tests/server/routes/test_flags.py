"""/v1/guard/flags over a real database: lists, labels, exports, deletions, and wrong requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from guard.criteria import Place
from guard.errors import GuardError
from guard.policies import Policies
from guard.policy_file import parse_policies
from guard.store.flags import Flag, FlagStore
from guard.store.review import ReviewStore
from guard.store.url import parse_url
from server.errors import BadRequest, on_bad_request, on_guard_error
from server.routes import flags as flag_routes
from tests.databases import migrated_file

POLICY = """
[[criteria]]
name = "doses"
description = "It tells how much of a medicine to take."
"""
OLD = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
async def filled(tmp_path: Path, flag: Flag) -> AsyncIterator[ReviewStore]:
    """Flags 1 to 5; number 2 is old, of another user and adapter, and mentions a zeppelin."""
    url = await asyncio.to_thread(migrated_file, tmp_path / "flags.db")
    store = FlagStore(url)
    for number in range(1, 6):
        each = replace(flag, request_id=f"r{number}")
        if number == 2:
            change: Any = {"created_at": OLD, "user_hash": "ab", "adapter": "other"}
            each = replace(each, answer="A zeppelin.", **change)
        assert await store.add(each) == number
    await store.close()
    reviews = ReviewStore(url)
    yield reviews
    await reviews.close()


@pytest.fixture
async def client(filled: ReviewStore) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(flag_routes.router)
    app.add_exception_handler(GuardError, on_guard_error)
    app.add_exception_handler(BadRequest, on_bad_request)
    policies = Policies(parse_policies(POLICY, "policy"))
    app.state.setback = SimpleNamespace(reviews=filled, policies=policies)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/guard") as client:
        yield client


async def ids(client: httpx.AsyncClient, **asked: Any) -> list[int]:
    response = await client.get("/flags", params=asked)
    assert response.status_code == 200, response.text
    return [flag["id"] for flag in response.json()["data"]]


async def test_pages_follow_each_other_to_the_end(client: httpx.AsyncClient) -> None:
    first = (await client.get("/flags", params={"limit": 3})).json()
    assert [flag["id"] for flag in first["data"]] == [5, 4, 3]
    assert (first["object"], first["first_id"], first["last_id"]) == ("list", 5, 3)
    assert first["has_more"] is True
    last = (await client.get("/flags", params={"limit": 3, "after": first["last_id"]})).json()
    assert [flag["id"] for flag in last["data"]] == [2, 1]
    assert last["has_more"] is False
    beyond = (await client.get("/flags", params={"after": 1})).json()
    assert (beyond["data"], beyond["last_id"], beyond["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    "asked",
    [
        {"q": "zepp"},
        {"adapter": "other"},
        {"user_hash": "ab"},
        {"request_id": "r2"},
        {"until": (OLD + timedelta(days=1)).isoformat()},
        {"since": OLD.isoformat(), "until": "2025-06-01T00:00:00Z", "status": "open"},
    ],
)
async def test_filters_are_passed_to_the_store(
    client: httpx.AsyncClient, asked: dict[str, str]
) -> None:
    assert await ids(client, **asked) == [2]


async def test_a_flagged_request_is_told_from_an_answer(
    client: httpx.AsyncClient, tmp_path: Path, flag: Flag
) -> None:
    store = FlagStore(parse_url(f"sqlite:///{tmp_path}/flags.db"))
    number = await store.add(replace(flag, place=Place.INPUT, answer=""))
    await store.close()
    assert await ids(client, place="input") == [number]
    assert await ids(client, place="output") == [5, 4, 3, 2, 1]
    exported = await client.get("/flags/export", params={"place": "input"})
    assert json.loads(exported.text)["place"] == "input"
    wrong = await client.get("/flags", params={"place": "nowhere"})
    assert "'output', 'input' or 'tool_result'" in wrong.json()["error"]["message"]


async def test_a_flag_is_shown_whole(client: httpx.AsyncClient, flag: Flag) -> None:
    shown = (await client.get("/flags/2")).json()
    assert shown["object"] == "guard.flag"
    assert shown["created_at"] == int(OLD.timestamp())
    assert shown["answer"] == "A zeppelin."
    assert shown["messages"] == flag.messages
    assert shown["category_scores"] == flag.category_scores
    missing = await client.get("/flags/99")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "flag_unknown"


async def test_labels_are_kept_with_who_said_it(client: httpx.AsyncClient) -> None:
    said = {"review": "confirmed", "category": "hate", "answer": "No.", "note": "n"}
    labelled = (await client.post("/flags/2/label", json=said)).json()
    assert (labelled["review"], labelled["reviewer"]) == ("confirmed", "local")
    assert (labelled["corrected_category"], labelled["corrected_answer"]) == ("hate", "No.")
    assert labelled == (await client.get("/flags/2")).json()
    many = {"ids": [4, 5], "review": "dismissed"}
    both = (await client.post("/flags/label", json=many)).json()
    assert [flag["id"] for flag in both["data"]] == [4, 5]
    assert await ids(client, status="dismissed") == [5, 4]
    none = await client.post("/flags/label", json={"ids": [1, 99], "review": "dismissed"})
    assert none.status_code == 404
    assert await ids(client, status="open") == [3, 1]


async def test_a_label_may_name_a_criterion_in_force(client: httpx.AsyncClient) -> None:
    label = {"review": "confirmed", "category": "doses"}
    labelled = (await client.post("/flags/2/label", json=label)).json()
    assert labelled["corrected_category"] == "doses"
    for path, body in (("/flags/3/label", {}), ("/flags/label", {"ids": [3]})):
        refused = await client.post(path, json={**label, **body, "category": "rude"})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "category")
        assert "unknown category" in error["message"]
        assert "doses" in error["message"]


async def test_an_export_has_a_flag_a_line(client: httpx.AsyncClient) -> None:
    response = await client.get("/flags/export", params={"max_score": 1})
    assert response.headers["content-type"].startswith("application/jsonl")
    exported = [json.loads(line) for line in response.text.splitlines()]
    assert exported == (await client.get("/flags")).json()["data"]


async def test_deletions_are_for_good(client: httpx.AsyncClient) -> None:
    gone = await client.post("/flags/purge", json={"older_than_days": 90})
    assert gone.json() == {"object": "guard.flags.deleted", "deleted": 1}
    assert (await client.get("/flags/2")).status_code == 404
    assert (await client.delete("/users/nobody")).json()["deleted"] == 0
    assert (await client.delete("/flags/4")).json()["deleted"] == 1
    assert (await client.delete("/flags/4")).status_code == 404
    assert await ids(client) == [5, 3, 1]


@pytest.mark.parametrize(
    ("method", "path", "sent", "param", "said"),
    [
        ("GET", "/flags?limit=0", None, "limit", "greater than or equal to 1"),
        ("GET", "/flags?limit=101", None, "limit", "less than or equal to 100"),
        ("GET", "/flags?after=x", None, "after", "valid integer"),
        ("GET", "/flags?after=9999999999999999999", None, "after", "less than or equal"),
        ("GET", "/flags?colour=red", None, "colour", "not permitted"),
        ("GET", "/flags?category=Rude!", None, "category", "should match pattern"),
        ("GET", "/flags?status=maybe", None, "status", "'open'"),
        ("GET", "/flags?since=2026-01-01T00:00:00", None, "since", "needs a zone"),
        ("GET", "/flags?since=0001-01-01T00:00:00%2B14:00", None, "since", "years 1 and 9999"),
        ("GET", "/flags?until=9999-12-31T23:59:59-14:00", None, "until", "years 1 and 9999"),
        ("GET", "/flags?q=%21%21", None, "q", "at least one word"),
        ("GET", "/flags?min_score=nan", None, "min_score", "less than or equal to 1"),
        ("GET", "/flags/x", None, "flag_id", "valid integer"),
        ("POST", "/flags/1/label", {}, "review", "Field required"),
        ("POST", "/flags/1/label", {"review": "fine"}, "review", "'dismissed'"),
        ("POST", "/flags/1/label", {"review": "confirmed", "x": 1}, "x", "not permitted"),
        ("POST", "/flags/1/label", "{", "", "JSON"),
        ("POST", "/flags/label", {"review": "confirmed", "ids": []}, "ids", "at least 1"),
        ("POST", "/flags/purge", {"older_than_days": -1}, "older_than_days", "or equal to 0"),
        ("POST", "/flags/purge", {"older_than_days": False}, "older_than_days", "valid integer"),
        ("POST", "/flags/purge", {"older_than_days": "0"}, "older_than_days", "valid integer"),
        ("POST", "/flags/label", {"review": "confirmed", "ids": [True]}, "ids.0", "valid integer"),
    ],
)
async def test_errors_name_the_field(
    client: httpx.AsyncClient, method: str, path: str, sent: Any, param: str, said: str
) -> None:
    content = sent if isinstance(sent, str | None) else json.dumps(sent)
    headers = {"content-type": "application/json"}
    response = await client.request(method, path, content=content, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_value"
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert said in error["message"]
