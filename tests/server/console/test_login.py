"""Reviewers log in with their key, stay logged in while it is valid, and log out."""

import asyncio
import time
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from itsdangerous import TimestampSigner

from guard.store import migrate
from guard.store.url import parse_url
from server.auth.sessions import FLAGS, Sessions
from tests.server.console.test_pages import check_headers
from tests.server.face import BASE_URL, Face, open_face
from tests.server.markup import Markup

COOKIE = "setback_session"
TWELVE_HOURS_S = 12 * 60 * 60


@pytest.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    async with face.client() as client:
        yield client


async def test_a_page_asks_for_a_key_and_comes_back(face: Face, client: httpx.AsyncClient) -> None:
    secret = await face.key("review")
    asked = "/console/flags?q=a+%26b&said=%E6%97%A5"
    sent = await client.get(asked)
    assert sent.status_code == 303
    page = Markup((await client.get(sent.headers["location"])).text)
    assert page.forms() == {"/console/login": "post"}
    fields = {str(field["name"]): str(field.get("value", "")) for field in page.all("input")}
    assert fields == {"username": "console", "key": "", "next": asked}
    # With spaces around it, as people paste it.
    done = await client.post("/console/login", data={**fields, "key": f" {secret}\n"})
    assert (done.status_code, done.headers["location"]) == (303, asked)
    assert (await client.get(asked)).status_code == 200


async def test_only_keys_for_reviewing_log_in(face: Face, client: httpx.AsyncClient) -> None:
    calling = await face.key("call")
    revoked, secret = await face.keys.make("ben", "admin", by="ada")
    await face.keys.revoke(revoked.id, by="ada")
    await face.access.refresh()
    for key, problem in (
        ("", "No valid key has this secret"),
        ("sb-wrong", "No valid key has this secret"),
        ("\ud800\0".encode("utf-8", "surrogatepass").decode("latin-1"), "No valid key"),
        (secret, "No valid key has this secret"),
        (calling, "This key has the role call; the console needs review or admin"),
    ):
        refused = await client.post("/console/login", data={"key": key, "next": "/console/runs"})
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        page = Markup(refused.text)
        assert problem in page.text
        values = [field.get("value") for field in page.all("input")]
        assert values == ["console", None, "/console/runs"]
        assert key == "" or key not in refused.text
    assert (await client.get("/console/flags")).status_code == 303
    for role in ("review", "admin"):
        done = await client.post("/console/login", data={"key": await face.key(role)})
        assert (done.status_code, done.headers["location"]) == (303, FLAGS)
        assert f"({role}), {role}" in (await client.get("/console/runs")).text.replace("anna", role)


@pytest.mark.parametrize(
    ("wanted", "location"),
    [
        ("/console/runs/3", "/console/runs/3"),
        ("/console/flags?status=open&q=a%20b", "/console/flags?status=open&q=a%20b"),
        ("/console/flags?q=日本", "/console/flags?q=%E6%97%A5%E6%9C%AC"),
        ("/console/\r\nset-cookie: a=b", "/console/%0D%0Aset-cookie:%20a=b"),
        ("/console/\0", "/console/%00"),
        ("", FLAGS),
        ("/console", FLAGS),
        ("/consolation", FLAGS),
        ("/", FLAGS),
        ("/v1/guard/flags", FLAGS),
        ("https://evil.example/console/", FLAGS),
        ("//evil.example/console/", FLAGS),
        ("/\\evil.example/console/", FLAGS),
        ("\\\\evil.example", FLAGS),
        (" /console/runs", FLAGS),
        ("javascript:alert(1)", FLAGS),
        ("data:text/html,<script>alert(1)</script>", FLAGS),
    ],
)
async def test_a_login_leads_to_our_own_pages_only(
    face: Face, client: httpx.AsyncClient, wanted: str, location: str
) -> None:
    secret = await face.key("review")
    asked = Markup((await client.get("/console/login", params={"next": wanted})).text)
    assert {"type": "hidden", "name": "next", "value": wanted} in asked.all("input")
    done = await client.post("/console/login", data={"key": secret, "next": wanted})
    assert (done.status_code, done.headers["location"]) == (303, location)
    assert list(done.cookies) == [COOKIE]
    check_headers(done)


@pytest.mark.parametrize(
    ("base_url", "root_path", "path", "secure"),
    [
        (BASE_URL, "", "/console", False),
        ("https://guard.example", "", "/console", True),
        ("https://guard.example", "/setback", "/setback/console", True),
    ],
)
async def test_the_cookie_is_for_the_console_and_no_script(
    face: Face, base_url: str, root_path: str, path: str, secure: bool
) -> None:
    secret = await face.key("review")
    async with face.client(base_url, root_path) as client:
        login = f"{root_path}/console/login"
        done = await client.post(login, data={"key": secret, "next": f"{path}/runs"})
        page = Markup((await client.get(done.headers["location"])).text)
    assert done.headers["location"] == f"{path}/runs"
    assert all(each.startswith((path, "#")) for each in page.addresses)
    (cookie,) = SimpleCookie(done.headers["set-cookie"]).values()
    assert (cookie.key, cookie["path"]) == (COOKIE, path)
    assert (cookie["httponly"], cookie["samesite"].lower()) == (True, "lax")
    assert bool(cookie["secure"]) is secure
    assert int(cookie["max-age"]) == TWELVE_HOURS_S
    assert cookie["domain"] == ""
    assert secret not in cookie.value


async def test_logging_out_forgets_who_it_was(face: Face) -> None:
    async with face.browser("review") as client:
        page = Markup((await client.get("/console/runs")).text)
        assert page.forms()["/console/logout"] == "post"
        out = await client.post("/console/logout")
        assert (out.status_code, out.headers["location"]) == (303, "/console/login")
        check_headers(out)
        (cookie,) = SimpleCookie(out.headers["set-cookie"]).values()
        assert (cookie.value, cookie["path"], cookie["max-age"]) == ("", "/console", "0")
        assert not client.cookies
        assert (await client.get("/console/runs")).status_code == 303


async def test_a_session_ends_with_its_key(face: Face) -> None:
    await face.key("review", name="another, so that the server stays closed")
    async with face.browser("review") as client:
        assert (await client.get("/console/flags")).status_code == 200
        await face.keys.revoke(2, by="ada")
        await face.access.refresh()
        assert (await client.get("/console/flags")).status_code == 303
        labelled = await client.post("/console/flags/1/label", data={"review": "confirmed"})
        assert (labelled.status_code, labelled.headers["location"]) == (303, "/console/login")
        part = await client.get("/console/runs/1", headers={"hx-request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/console/login")


@pytest.mark.parametrize(("age_s", "status"), [(-60, 200), (60, 303)])
async def test_a_session_lasts_twelve_hours(
    face: Face, monkeypatch: pytest.MonkeyPatch, age_s: int, status: int
) -> None:
    then = int(time.time()) - TWELVE_HOURS_S - age_s
    with monkeypatch.context() as earlier:
        earlier.setattr(TimestampSigner, "get_timestamp", lambda _: then)
        async with face.browser("review") as client:
            cookie = client.cookies[COOKIE]
    async with face.client() as client:
        client.cookies.set(COOKIE, cookie)
        assert (await client.get("/console/flags")).status_code == status


@pytest.mark.parametrize("forged", ["", "1", "MQ.aaaa.bbbb", "a" * 5000, "..", "é", '"1"'])
async def test_no_other_cookie_logs_in(face: Face, forged: str) -> None:
    await face.key("admin")
    async with face.client() as client:
        headers = {b"cookie": f"{COOKIE}={forged}".encode()}
        assert (await client.get("/console/flags", headers=headers)).status_code == 303


async def test_a_cookie_signed_by_another_server_does_not_log_in(
    face: Face, tmp_path: Path
) -> None:
    await face.key("admin")
    url = parse_url(f"sqlite:///{tmp_path}/other.db")
    # Migrated anew: copies have the same secret.
    await asyncio.to_thread(migrate.upgrade, url)
    async with open_face(url) as other, other.browser("admin") as stranger:
        cookie = stranger.cookies[COOKIE]
    async with face.client() as client:
        client.cookies.set(COOKIE, cookie)
        assert (await client.get("/console/flags")).status_code == 303


async def test_a_session_opens_the_console_alone(face: Face) -> None:
    async with face.browser("admin") as client:
        for cookie in client.cookies.jar:
            assert cookie.path == "/console"
        session = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        assert (await client.get("/v1/guard/flags", headers=session)).status_code == 401
        assert (await client.get("/v1/models", headers=session)).status_code == 401


async def test_a_key_in_a_header_opens_the_console_too(face: Face) -> None:
    secret = await face.key("review")
    async with face.client() as client:
        headers = {"authorization": f"Bearer {secret}"}
        assert (await client.get("/console/flags", headers=headers)).status_code == 200


async def test_without_keys_no_key_is_needed(face: Face) -> None:
    async with face.client() as client:
        sent = await client.get("/console/login")
        assert (sent.status_code, sent.headers["location"]) == (303, FLAGS)
        assert (await client.get("/console/flags")).status_code == 200
        assert (await client.post("/console/login", data={"key": "a"})).status_code == 401


async def test_behind_vllms_own_key_there_is_no_console_before_keys_are_made(
    face: Face, tmp_path: Path
) -> None:
    async with open_face(parse_url(f"sqlite:///{tmp_path}/face.db"), api_key=True) as behind:
        async with behind.client() as client:
            for path in ("/console", "/console/login", "/console/flags"):
                refused = await client.get(path)
                assert refused.status_code == 403
                assert "setback keys make" in refused.json()["error"]["message"]
        async with behind.browser("review") as client:
            assert (await client.get("/console/flags")).status_code == 200


@pytest.mark.parametrize("query", [b"\xff\xfe", b"a=%", b"%00", b"<script>", b"a" * 10_000])
async def test_any_query_can_be_sent_to_log_in(face: Face, query: bytes) -> None:
    await face.key("review")
    sent: dict[str, object] = {}

    async def send(message: dict[str, object]) -> None:
        sent.update(message)

    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/console/flags",
        "query_string": query,
        "headers": [(b"host", b"127.0.0.1:8000")],
    }
    await face.app(scope, None, send)  # type: ignore[arg-type]
    assert sent["status"] == 303


def test_a_session_holds_a_number_and_no_secret() -> None:
    made = Sessions("secret").__dict__["_serializer"].dumps(7)
    assert made.startswith("Nw.")


async def test_too_large_forms_are_not_read(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"key="
        pytest.fail("it was read on")

    long = await client.post("/console/login", data={"key": "x" * 2**21})
    unknown = await client.post("/console/login", content=endless())
    for refused in (long, unknown):
        assert refused.status_code == 413
        check_headers(refused)
