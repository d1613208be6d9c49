"""Flags are reviewed over HTTP, and each key opens exactly its routes, on running servers."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import anthropic
import httpx
import openai
import pytest
from sqlalchemy import text

from guard.store.database import connect
from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import SETBACK, Server

pytestmark = pytest.mark.e2e


def setback(server: Server, *arguments: str) -> str:
    """Returns a command's output about the server's database."""
    url = server.database.render_as_string(hide_password=False)
    done = subprocess.run(
        [SETBACK, *arguments],
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_flag_is_found_labelled_and_deleted(
    server: Server, client: openai.OpenAI, harmful: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": harmful}],
        temperature=0,
        user="a user to forget",
    )
    request_id = raw.parse().id
    with server.http() as http:
        (flag,) = http.get("/v1/guard/flags", params={"request_id": request_id}).json()["data"]
        same = {"user_hash": flag["user_hash"], "q": harmful, "status": "open", "action": "revise"}
        assert http.get("/v1/guard/flags", params=same).json()["data"] == [flag]
        label = {"review": "confirmed", "answer": "I would rather not.", "note": "seen"}
        labelled = http.post(f"/v1/guard/flags/{flag['id']}/label", json=label).json()
        assert labelled["corrected_answer"] == "I would rather not."
        assert "confirmed by local" in setback(server, "flags", "show", str(flag["id"]))
        exported = http.get("/v1/guard/flags/export", params={"user_hash": flag["user_hash"]})
        assert [json.loads(line) for line in exported.text.splitlines()] == [labelled]
        gone = http.delete(f"/v1/guard/users/{flag['user_hash']}").json()
        assert gone["deleted"] == 1
        assert http.get(f"/v1/guard/flags/{flag['id']}").status_code == 404
        wrong = http.get("/v1/guard/flags", params={"limit": 0})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "limit")
    trail = setback(server, "audit", "--json")
    assert f"flag {flag['id']}" in trail
    assert "flags.deleted" in trail
    assert flag["answer"] not in server.log.read_text()


@pytest.fixture
def keyed(strict_server: Server) -> Iterator[Callable[[str], str]]:
    """Makes keys of a role; afterwards the server is open to its machine again."""

    def status() -> set[int]:
        # Each connection may reach another of the API processes.
        return {httpx.get(f"{strict_server.base_url}/v1/models").status_code for _ in range(8)}

    def until(expected: int) -> None:
        deadline = time.monotonic() + 60
        while status() != {expected}:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def make(role: str) -> str:
        secret = setback(strict_server, "keys", "make", f"for {role}", "--role", role).strip()
        until(401)
        return secret

    yield make

    async def forget() -> None:
        engine = connect(strict_server.database)
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM keys"))
        await engine.dispose()

    asyncio.run(forget())
    until(200)


def test_keys_open_what_they_are_for(
    strict_server: Server, keyed: Callable[[str], str], everyday: str
) -> None:
    secrets = {role: keyed(role) for role in ("call", "review")}
    # The second key was made when the first one had closed the server already.
    conversation = [{"role": "user", "content": everyday}]
    client = openai.OpenAI(
        base_url=f"{strict_server.base_url}/v1", api_key=secrets["call"], max_retries=0
    )
    chat = client.chat.completions.create(model=MODEL_NAME, messages=conversation, max_tokens=8)  # type: ignore[arg-type]
    assert chat.choices[0].finish_reason == "content_filter"
    messages = anthropic.Anthropic(
        base_url=strict_server.base_url, api_key=secrets["call"], max_retries=0
    ).messages
    reply = messages.create(model=MODEL_NAME, messages=conversation, max_tokens=8)  # type: ignore[arg-type]
    assert reply.stop_reason == "refusal"
    with pytest.raises(openai.AuthenticationError, match="setback keys make"):
        client.with_options(api_key="sb-wrong").models.list()
    with strict_server.http() as http:
        flags = "/v1/guard/flags"
        for secret, expected in ((secrets["call"], 403), ("sb-wrong", 401)):
            refused = http.get(flags, headers={"authorization": f"Bearer {secret}"})
            assert refused.status_code == expected
        reviewer = {"authorization": f"Bearer {secrets['review']}"}
        deadline = time.monotonic() + 60
        while (response := http.get(flags, headers=reviewer)).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert response.json()["data"]
        purge = http.post(f"{flags}/purge", headers=reviewer, json={"older_than_days": 1})
        assert purge.status_code == 403
        assert http.get("/health").status_code == 200
        assert "setback_" in http.get("/metrics").text
    log = strict_server.log.read_text()
    assert not any(secret in log for secret in secrets.values())
