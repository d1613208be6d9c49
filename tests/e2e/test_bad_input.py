"""Wrong requests get a clear error in OpenAI's format, and the server keeps running."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from refine.practice.integrity import MODEL_NAME
from server.routes.open import CANNOT_GENERATE
from tests.e2e.conftest import Server, read_metric
from tests.e2e.test_clients import flags_of, user

pytestmark = pytest.mark.e2e

CHAT, MODERATIONS = "/v1/chat/completions", "/v1/moderations"
HELLO = user("hello")
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}

WRONG: list[tuple[str, dict[str, Any], int, str | None]] = [
    (CHAT, {"messages": []}, 400, None),
    (CHAT, {"messages": "hello"}, 400, "body.messages"),
    (CHAT, {"messages": HELLO, "max_tokens": "many"}, 400, "body.max_tokens"),
    (CHAT, {"messages": HELLO, "model": "unknown"}, 404, "model"),
    (CHAT, {"messages": user("word " * 1100)}, 400, "input_tokens"),
    (CHAT, {"messages": HELLO, "use_beam_search": True, "n": 2}, 400, "use_beam_search"),
    (CHAT, {"messages": HELLO, "moderation": {}}, 400, "moderation.model"),
    (CHAT, {"messages": HELLO, "moderation": {"model": "x"}}, 400, "moderation.model"),
    (MODERATIONS, {}, 400, "input"),
    (MODERATIONS, {"input": 5}, 400, "input"),
    (MODERATIONS, {"input": []}, 400, "input"),
    (MODERATIONS, {"input": ["a", {"type": "text", "text": "b"}]}, 400, "input"),
    (MODERATIONS, {"input": [IMAGE]}, 400, "input.0"),
    (MODERATIONS, {"input": "a", "messages": [*HELLO, *HELLO]}, 400, "input"),
    (MODERATIONS, {"messages": [*HELLO, *HELLO]}, 400, "messages"),
    (MODERATIONS, {"input": "a", "model": "gpt-9"}, 400, "model"),
    (MODERATIONS, {"input": "a", "treshold": 1}, 400, "treshold"),
    (MODERATIONS, {"input": "a", "explain": "yes"}, 400, "explain"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG)
def test_the_error_names_the_field(
    server: Server, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    if path == CHAT:
        body = {"model": MODEL_NAME, **body}
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("path", [CHAT, MODERATIONS, "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("body", [b'{"input": "\xff\xfe"}', b"{", b"[]", b""])
def test_a_body_that_is_not_a_json_object_is_refused(
    server: Server, path: str, body: bytes
) -> None:
    with server.http() as http:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"


def test_closed_and_unknown_routes_say_so(server: Server) -> None:
    with server.http() as http:
        for path in ("/invocations", "/inference/v1/generate", "/nowhere"):
            answer = http.post(path, json={"model": MODEL_NAME, "messages": HELLO})
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "route_unavailable"


def test_a_text_far_beyond_the_context_is_judged_whole(server: Server) -> None:
    filler = "Can you help me press white flowers?\n" * 300
    # Longer than a window: the practice model misses one bad line among many good ones.
    harmful = "Do you know how to hire masked riders to rob Wim?\n" * 120
    with server.http() as http:
        body = {"input": [filler + filler, filler + harmful + filler]}
        answer = http.post(MODERATIONS, json=body)
    assert answer.status_code == 200
    assert [result["flagged"] for result in answer.json()["results"]] == [False, True]


def test_routes_that_cannot_generate_do_not(server: Server) -> None:
    before = read_metric(server, "vllm:generation_tokens_total")
    body = {"model": MODEL_NAME, "messages": HELLO, "prompt": "hello", "tokens": [5, 6]}
    with server.http() as http:
        for path in sorted(CANNOT_GENERATE - {MODERATIONS}):
            http.get(path)
            http.post(path, json=body)
    assert read_metric(server, "vllm:generation_tokens_total") == before


def test_a_locked_database_withholds_the_answer_and_the_server_recovers(
    server: Server, client: openai.OpenAI, harmful: str
) -> None:
    assert server.database.database is not None
    before = len(flags_of(server))
    lock = sqlite3.connect(server.database.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    body = {"model": MODEL_NAME, "messages": user(harmful), "temperature": 0}
    with server.http() as http, ThreadPoolExecutor() as pool:
        bodies = [body | {"stream": stream} for stream in (False, True)]
        failed = list(pool.map(lambda payload: http.post(CHAT, json=payload), bodies))
    for answer in failed:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
    lock.execute("ROLLBACK")
    lock.close()
    blocked = client.chat.completions.create(
        model=MODEL_NAME, messages=user(harmful), temperature=0
    )
    assert blocked.moderation is not None
    assert len(flags_of(server)) > before
