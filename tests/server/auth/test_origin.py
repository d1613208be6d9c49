"""Other sites' pages can change nothing and read nothing, whatever they make a browser send."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from guard.store.flags import Flag
from server.auth.origin import has_foreign_host, is_cross_site
from server.routes.open import REFINE_PREFIX
from tests.server.face import Face, fill

HOST = "127.0.0.1:8000"
OPENED = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
FROM_ELSEWHERE: tuple[dict[str, str], ...] = (
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", **OPENED},
    {"sec-fetch-site": "something new"},
    {"sec-fetch-site": ""},
    {"origin": "https://evil.example"},
    {"origin": f"https://evil.example/{HOST}"},
    {"origin": f"https://{HOST}.evil.example"},
    {"origin": f"https://evil@{HOST}"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://[127.0.0.1"},
)
OTHER_NAMES = (
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("127.0.0.1@evil.example", "10.0.0.7:8000", "0.0.0.0", "[::]", "2130706433", "0x7f.1"),
    *("", "[::1", "[]", ":8000"),
)
OUR_NAMES = (
    "127.0.0.1",
    HOST,
    "localhost",
    "localhost:9000",
    "LOCALHOST",
    "[::1]:8000",
    "127.8.8.8",
)


def changing(face: Face) -> Iterator[tuple[str, str]]:
    """Method and path of all our routes that change something."""
    for route in face.app.routes:
        if isinstance(route, APIRoute) and not route.path.startswith(REFINE_PREFIX):
            for method in route.methods - {"GET"}:
                if route.path.startswith(("/v1/guard", "/console")):
                    yield method, route.path.format(flag_id=1, run_id=1, version=2, user_hash="a")


async def state(face: Face) -> list[Any]:
    """Returns all state that could be changed."""
    return [
        [await face.reviews.get(number) for number in (1, 2, 3, 4)],
        await face.runs.list(10),
        await face.registry.history(),
        await face.audit.list(100),
    ]


def is_refusal(response: httpx.Response) -> bool:
    return response.status_code == 403 and response.json()["error"]["code"] == "forbidden_origin"


async def test_without_keys_nothing_is_changed_from_elsewhere(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    before = await state(face)
    routes = sorted(changing(face))
    assert {"/v1/guard/runs", "/v1/guard/users/a", "/console/runs"} <= {path for _, path in routes}
    async with face.client() as client:
        for method, path in routes:
            for headers in (*FROM_ELSEWHERE, *({"host": name} for name in OTHER_NAMES)):
                response = await client.request(method, path, headers=headers, json={})
                assert is_refusal(response), (method, path, headers)
    assert await state(face) == before


async def test_other_sites_cannot_use_a_session(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("admin") as client:
        before = await state(face)
        for method, path in changing(face):
            for headers in FROM_ELSEWHERE:
                response = await client.request(method, path, headers=headers, json={})
                refused = is_refusal(response) or response.status_code == 401
                assert refused, (method, path, headers)
                # The session is for the console alone.
                assert (response.status_code == 401) == path.startswith("/v1")
        # Once there are keys, any name may lead to this server.
        named = await client.get("/console/flags", headers={"host": "guard.example"})
        assert named.status_code == 200
        assert await state(face) == before


async def test_a_key_in_a_header_may_come_from_anywhere(face: Face) -> None:
    headers = {
        "authorization": f"Bearer {await face.key('admin')}",
        "sec-fetch-site": "cross-site",
        "origin": "https://evil.example",
        "host": "guard.example",
    }
    async with face.client() as client:
        assert (await client.get("/v1/guard/flags", headers=headers)).status_code == 200
        assert is_refusal(await client.get("/console/flags", headers=headers))


async def test_other_sites_may_link_to_pages_but_not_frame_or_fetch_them(face: Face) -> None:
    async with face.client() as client:
        for site in ("cross-site", "same-site"):
            from_there = {"sec-fetch-site": site}
            for path in ("/console/flags", "/console/login", "/v1/guard/flags", "/v1/guard/policy"):
                linked = await client.get(path, headers=from_there | OPENED)
                assert linked.status_code in (200, 303), path
                for dest in ("iframe", "embed", "object", "empty", "script", "image", "style"):
                    for mode in ("navigate", "no-cors", "cors"):
                        fetched = {"sec-fetch-mode": mode, "sec-fetch-dest": dest}
                        response = await client.get(path, headers=from_there | fetched)
                        assert is_refusal(response), (path, dest, mode)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": f"http://{HOST}"},
        {"origin": f"http://{HOST}"},
        {"origin": f"https://{HOST}"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_our_own_pages_and_programs_are_not_refused(method: str, headers: dict[str, str]) -> None:
    assert not is_cross_site(method, Headers({"host": HOST, **headers}))


@pytest.mark.parametrize("name", OUR_NAMES)
def test_this_machine_is_known_by_its_names(name: str) -> None:
    assert not has_foreign_host(Headers({"host": name}))


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_any_other_name_is_a_foreign_host(name: str) -> None:
    assert has_foreign_host(Headers({"host": name}))


def test_local_names_are_not_foreign_hosts() -> None:
    assert has_foreign_host(Headers({}))


@pytest.mark.parametrize(
    ("origin", "public_url", "cross_site"),
    [
        ("https://guard.example", None, True),
        ("https://guard.example", "https://guard.example", False),
        ("http://guard.example", "https://guard.example", True),
        ("https://guard.example.evil", "https://guard.example", True),
        (f"http://{HOST}", "https://guard.example", False),
    ],
)
def test_behind_a_proxy_the_public_url_is_ours(
    origin: str, public_url: str | None, cross_site: bool
) -> None:
    headers = Headers({"host": HOST, "origin": origin})
    assert is_cross_site("POST", headers, public_url) is cross_site
