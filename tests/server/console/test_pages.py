"""Every page of the console works with any database content, has the same headers, and shows
untrusted content as text."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.policy import Action
from guard.store.flags import Flag
from guard.store.text import storable
from guard.verdict import CATEGORIES
from tests.databases import migrated_file
from tests.server.face import STATUSES, Face, fill, open_face
from tests.server.markup import Markup

LISTS = (
    "/flags",
    "/flags?status=open",
    "/runs",
    "/adapters",
    "/adapters/rollback",
    "/policy",
    "/traffic",
)
SPANS = tuple(f"/traffic?span={span}" for span in ("1h", "24h", "7d", "30d", "1y"))
LABELLED = f"/flags/{len(Action)}"
"""The flag that a reviewer has labelled: there is one for each action."""
EVERYTHING = (
    *LISTS,
    *SPANS,
    *(f"/flags/{number + 1}" for number in range(len(Action))),
    *(f"/runs/{number + 1}" for number in range(len(STATUSES))),
    *(f"/adapters/{number + 1}" for number in range(len(STATUSES))),
    *(f"/adapters/{number + 1}/promote" for number in range(len(STATUSES))),
)
SCRIPT = "javascript:alert(1)"
HOSTILE = " ".join(
    (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "'><svg/onload=alert(1)>",
        "</p></main><form action=//evil.example><button>",
        "{{ 7*7 }}{% for x in y %}<%= 7*7 %>${7*7}",
        "&lt;script&gt; &amp;amp; &#60;b&#62; <!-- <![CDATA[",
        "\u202eevil\u2066 \u200f\ufeff",
        "nul\0 and a lone surrogate \ud800 in it",
    )
)
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def check_headers(response: httpx.Response) -> None:
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS, response.request.url
    rules = response.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "form-action 'self'"} <= {*rules}
    assert not any("unsafe" in rule or "*" in rule for rule in rules)


async def shown(client: httpx.AsyncClient, paths: Sequence[str]) -> dict[str, Markup]:
    pages = {}
    for path in paths:
        response = await client.get(f"/console{path}")
        assert response.status_code == 200, (path, response.text)
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        check_headers(response)
        pages[path] = Markup(response.text)
    return pages


async def test_an_empty_database_has_every_page(face: Face) -> None:
    async with face.client() as client:
        pages = await shown(client, (*LISTS, *SPANS))
        home = await client.get("/console")
    assert (home.status_code, home.headers["location"]) == (303, "/console/flags?status=open")
    assert "No flags here." in pages["/flags"].text
    assert "No runs yet." in pages["/runs"].text
    assert "the base model alone answers" in pages["/adapters"].text
    assert "nothing to roll back to" in pages["/adapters/rollback"].text
    assert pages["/adapters/rollback"].forms() == {}
    assert pages["/traffic"].text.count("Nothing yet.") == 4
    assert "no keys: this machine only" in pages["/flags"].text


async def test_every_page_shows_what_there_is(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    async with face.client() as client:
        pages = await shown(client, EVERYTHING)
    for status, number in zip(STATUSES, range(1, len(STATUSES) + 1), strict=True):
        told = "cancelling" if status == "running" else status.replace("_", " ")
        assert told in pages[f"/runs/{number}"].text
    assert f"Flag {len(Action)} confirmed" in " ".join(pages[LABELLED].text.split())
    assert "Adapter 1 promoted in force" in " ".join(pages["/adapters/1"].text.split())
    assert "10 answers judged in 24h" in pages["/traffic"].text
    assert "adapter switches: to 2 at" in " ".join(pages["/traffic"].text.split())
    assert "adapter 2" in pages["/adapters/rollback"].text


@pytest.mark.parametrize("said", [SCRIPT, HOSTILE, "x" * 50_000], ids=range(3))
async def test_untrusted_content_is_shown_as_text(tmp_path: Path, flag: Flag, said: str) -> None:
    pages = {}
    for written in ("oddity", said):
        url = await asyncio.to_thread(migrated_file, tmp_path / f"{written == said}.db")
        async with open_face(url) as face:
            await fill(face, flag, written)
            async with face.browser("admin", name=written) as client:
                pages[written] = await shown(client, (*EVERYTHING, *_reflecting(written)))
    plain, odd = pages["oddity"].values(), pages[said].items()
    for harmless, (path, page) in zip(plain, odd, strict=True):
        assert page.structure == harmless.structure, path
        assert all(each.startswith(("/console", "?", "#main")) for each in page.addresses), path
    kept = storable(said)
    for path in (LABELLED, "/runs/2", "/adapters/1"):
        assert kept in pages[said][path].text
    assert {"name": "note", "value": kept}.items() <= pages[said][LABELLED].all("input")[-1].items()


def _reflecting(said: str) -> list[str]:
    """Returns pages that show the request's parameters."""
    text = said.encode("utf-8", "replace").decode()[:450]
    asked = (
        *({"q": f"{text} word"}, {"adapter": f"no {text}"}),
        *({"said": text}, {"status": text}, {text: "1"}),
    )
    return [f"/flags?{httpx.QueryParams(each)}" for each in asked] + [
        f"/flags/1?{httpx.QueryParams({'said': text})}",
        f"/policy?{httpx.QueryParams({'said': text})}",
        f"/traffic?{httpx.QueryParams({'span': text})}",
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": None, "content": 5}],
        [{"role": "user", "content": [{"type": "text", "text": "in parts"}, "and plain", {}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "words " * 200_000}],
        [{"role": "user", "content": "one"}] * 500,
    ],
    ids=range(9),
)
async def test_odd_conversations_are_shown(face: Face, flag: Flag, messages: Any) -> None:
    odd = replace(
        flag, messages=messages, answer="", categories=(), category_scores={}, revision=""
    )
    await face.flags.add(odd)
    async with face.client() as client:
        pages = await shown(client, ("/flags", "/flags/1"))
    assert "Withheld answer, 0 characters" in pages["/flags/1"].text
    excerpt = pages["/flags"].text
    assert "None" not in excerpt
    assert ("in parts and plain" in excerpt) == ("in parts" in str(messages))


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/flags/99", 404, "There is no flag 99"),
        ("/flags/x", 404, "There is no such page"),
        ("/flags/0", 404, "There is no such page"),
        ("/flags/-1", 404, "There is no such page"),
        ("/flags/1.5", 404, "There is no such page"),
        ("/flags/9999999999999999999999", 404, "There is no such page"),
        ("/flags/1%20OR%201=1", 404, "There is no such page"),
        ("/flags/%00", 404, "There is no such page"),
        ("/flags/99/analysis", 404, "There is no flag 99"),
        ("/flags/x/analysis", 404, "There is no such page"),
        ("/runs/99", 404, "There is no run 99"),
        ("/runs/<b>", 404, "There is no such page"),
        ("/adapters/99", 404, "There is no adapter 99"),
        ("/adapters/99/promote", 404, "There is no adapter 99"),
        ("/adapters/x/promote", 404, "There is no such page"),
        ("/logout", 405, "GET /console/logout: Method Not Allowed."),
        ("/flags/1/label", 405, "Method Not Allowed"),
        ("/nowhere", 404, "Not Found"),
        ("/flags/1/2/3", 404, "Not Found"),
        ("/%3Cscript%3E", 404, "GET /console/<script>: Not Found."),
    ],
)
async def test_missing_objects_are_reported_on_a_page(
    face: Face, path: str, status: int, message: str
) -> None:
    async with face.client() as client:
        response = await client.get(f"/console{path}")
    assert response.status_code == status
    check_headers(response)
    page = Markup(response.text)
    assert message in page.text
    assert len(page.all("script")) == 2


async def test_a_failing_database_is_reported_on_a_page(face: Face, tmp_path: Path) -> None:
    (tmp_path / "face.db").rename(tmp_path / "elsewhere.db")
    async with face.client() as client:
        for path in LISTS:
            response = await client.get(f"/console{path}")
            assert response.status_code == 503
            check_headers(response)
            assert "There is no database" in Markup(response.text).text


async def test_early_refusals_have_the_pages_headers(face: Face) -> None:
    async with face.client() as client:
        check_headers(await client.get("/console/flags", headers={"sec-fetch-site": "cross-site"}))
        check_headers(await client.get("/console/flags", headers={"host": "evil.example"}))
        await face.key("call")
        check_headers(await client.get("/console/flags"))
        check_headers(await client.get("/console/flags", headers={"hx-request": "true"}))
        check_headers(await client.get("/console/login"))
        check_headers(await client.post("/console/login", data={"key": "wrong"}))
        check_headers(await client.get("/console/static/nowhere.js"))
    async with face.browser("review") as client:
        refused = await client.post("/console/runs")
        assert refused.status_code == 403
        check_headers(refused)


async def test_static_files_may_be_cached(face: Face) -> None:
    kinds = {"console.css": "text/css", "htmx.min.js": "text/javascript", "icon.svg": "image/svg"}
    async with face.client() as client:
        for name, kind in kinds.items():
            response = await client.get(f"/console/static/{name}")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    [
        "../login.py",
        "..%2flogin.py",
        "%2e%2e/login.py",
        "%2e%2e%2flogin.py",
        "..%5clogin.py",
        "%252e%252e%252flogin.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "console.css%00.js",
        "console.css/",
        "",
        ".",
        "CONSOLE.CSS",
    ],
)
async def test_no_other_file_is_given_out(face: Face, name: str) -> None:
    await face.key("review")
    async with face.client() as client:
        response = await client.get(f"/console/static/{name}")
    assert response.status_code in (303, 307, 404)
    assert "import" not in response.text
    assert "root:" not in response.text


async def test_known_categories_can_be_chosen(face: Face) -> None:
    async with face.client() as client:
        page = Markup((await client.get("/console/flags?category=hate")).text)
    assert all(name in page.text for name in CATEGORIES)
    assert {"selected": None} in page.all("option")
