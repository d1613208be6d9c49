"""Filters, searches and paths are treated as plain text, on both kinds of database."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import URL

from guard.store.flags import Flag
from guard.store.review import Filter
from guard.store.search import words_of
from guard.store.text import storable
from tests.server.face import open_face
from tests.server.markup import Markup

JSON = {"content-type": "application/json"}
ATTACKS = (
    "' OR 1=1 --",
    "' OR ''='",
    '" OR 1=1 --',
    "'; DROP TABLE flags; --",
    "') UNION SELECT id, value FROM secrets --",
    "a' || (SELECT value FROM secrets LIMIT 1) || '",
    "1 OR 1=1",
    "%",
    "_%",
    "\\",
    "\\'",
    "$1",
    ":asked",
    "?",
    "nul\0here",
    "\u2019 OR 1=1",
    "NEAR(gnome garden)",
    '"gnome" OR words:*',
    "gnome NOT zebra",
    "^gnome",
    "gnome*",
    "{words} : gnome",
    "!zebra | gnome:*",
    "gnome <-> garden",
    "gnome:A & 'garden'",
    "'gnome'':*",
)
COMPARED = ("adapter", "request_id", "user_hash")
REFUSED = (
    *("since", "until", "category", "action", "status"),
    *("min_score", "max_score", "limit", "after", "order_by", "id", "1=1"),
)


@pytest.fixture
async def client(database: URL, flag: Flag) -> AsyncIterator[httpx.AsyncClient]:
    """Three flags that mention a gnome in a garden."""
    async with open_face(database) as face:
        for number in range(3):
            await face.flags.add(replace(flag, request_id=f"r{number}", user_hash="ab"))
        async with face.client() as client:
            yield client
        # No request may have deleted a flag.
        assert [stored.id for stored in await face.reviews.page(Filter(), 10)] == [3, 2, 1]


async def ids(client: httpx.AsyncClient, **filters: str) -> list[int]:
    listed = await client.get("/v1/guard/flags", params=filters)
    assert listed.status_code == 200, listed.text
    exported = await client.get("/v1/guard/flags/export", params=filters)
    numbers = [flag["id"] for flag in listed.json()["data"]]
    assert len(exported.text.splitlines()) == len(numbers)
    page = Markup((await client.get("/console/flags", params=filters)).text)
    assert len([link for link in page.all("a") if "data-row" in link]) == len(numbers)
    return numbers


async def test_filter_values_match_only_themselves(client: httpx.AsyncClient) -> None:
    for name, attack in product(COMPARED, ATTACKS):
        assert await ids(client, **{name: attack}) == [], attack


async def test_a_search_is_for_words_and_knows_no_operators(client: httpx.AsyncClient) -> None:
    assert await ids(client, q="gnome garden") == [3, 2, 1]
    for attack in ATTACKS:
        response = await client.get("/v1/guard/flags", params={"q": attack})
        words = words_of(attack)
        if words:
            all_there = {"gnome", "garden"}.issuperset(words)
            assert await ids(client, q=attack) == ([3, 2, 1] if all_there else []), attack
        else:
            assert response.status_code == 400
            assert "at least one word" in response.json()["error"]["message"]


async def test_invalid_text_is_refused(client: httpx.AsyncClient) -> None:
    for name, attack in product(REFUSED, ATTACKS[::4]):
        for path in ("/v1/guard/flags", "/v1/guard/flags/export"):
            response = await client.get(path, params={name: attack})
            assert response.status_code == 400, (name, attack)
            assert response.json()["error"]["param"] == name
        page = await client.get("/console/flags", params={name: attack})
        assert page.status_code == 200
        assert {"class": "problem", "role": "alert"} in Markup(page.text).all("p")


async def test_paths_take_only_numbers(client: httpx.AsyncClient) -> None:
    for attack in ATTACKS:
        for path in ("flags", "runs", "adapters"):
            response = await client.get(f"/v1/guard/{path}/{quote(attack)}")
            assert response.status_code == 400, attack
            assert (await client.get(f"/console/{path}/{quote(attack)}")).status_code == 404


async def test_forgetting_a_user_takes_no_pattern(client: httpx.AsyncClient) -> None:
    for attack in ATTACKS:
        deleted = await client.delete(f"/v1/guard/users/{quote(attack)}")
        assert deleted.json() == {"object": "guard.flags.deleted", "deleted": 0}, attack


async def test_a_label_keeps_any_text(client: httpx.AsyncClient) -> None:
    for text in (*ATTACKS, "\U0001f40e" * 500):
        label = {"review": "confirmed", "answer": text, "note": text}
        labelled = await client.post(
            "/v1/guard/flags/1/label", content=json.dumps(label), headers=JSON
        )
        kept = (await client.get("/v1/guard/flags/1")).json()
        assert labelled.json() == kept
        assert kept["note"] == kept["corrected_answer"] == storable(text)


async def test_a_refusal_may_quote_any_text(client: httpx.AsyncClient) -> None:
    for text in (*ATTACKS, "a lone \ud800 surrogate"):
        for body in (
            {"review": "confirmed", text: 1},
            {"review": text},
            {"review": "confirmed", "category": text},
            {"review": "confirmed", "note": {text: text}},
            {"review": "confirmed", "note": f"\ud800{text}"},
        ):
            for path in ("/v1/guard/flags/1/label", "/v1/guard/adapters/rollback"):
                refused = await client.post(path, content=json.dumps(body), headers=JSON)
                assert refused.status_code == 400, body
                assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
