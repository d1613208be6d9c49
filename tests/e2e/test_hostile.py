"""Running servers answer or refuse requests that are made to break them, and keep running."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from refine.practice.integrity import MODEL_NAME
from server.routes.open import GUARDED, REVIEW
from tests.e2e.conftest import Server
from tests.e2e.test_clients import user
from tests.fuzz import Fuzz

pytestmark = pytest.mark.e2e

EXAMPLES, MANY = 8, 300
JUDGING = ("/tokenize", "/detokenize", "/v1/moderations", "/v1/messages/count_tokens")
READING = sorted(
    path for path in REVIEW if path.rpartition("/")[2] in ("flags", "export", "runs", "adapters")
)
"""Of these only GET is tried here: what changes something is tried in tests/server/test_fuzz.py."""
CHAT = "/v1/chat/completions"
FAILED = "Exception in ASGI application"
FINE = tuple(b"HTTP/1.1 %d" % kind for kind in (2, 3, 4))


@pytest.fixture
def unharmed(server: Server, strict_server: Server) -> Iterator[None]:
    """Both servers logged no internal error, and still answer."""
    before = {target: target.log.read_text().count(FAILED) for target in (server, strict_server)}
    yield
    for target, failures in before.items():
        assert target.log.read_text().count(FAILED) == failures
        answer = target.openai().chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
        assert answer.choices[0].message.content is not None


def meant_and_short(fields: dict[str, Any]) -> None:
    """Sets the served model and small limits in a generated request."""
    if isinstance(fields.get("model"), str):
        fields["model"] = MODEL_NAME
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"):
        if type(fields.get(name)) is int and fields[name] > 4:
            fields[name] = 4


def sent_to(server: Server, path: str, examples: int) -> set[int]:
    """Returns the statuses of generated requests."""
    with server.http() as http:
        document = http.get("/openapi.json").json()
        if path in READING:
            document["paths"][path] = {"get": document["paths"][path]["get"]}

        def send(request: httpx.Request) -> int:
            response = http.send(request)
            assert response.status_code < 500, (request.content, response.text)
            return response.status_code

        fuzz = Fuzz(document, server.base_url, meant_and_short)
        return fuzz.attempt(path, examples, send)


@pytest.mark.parametrize("path", [*sorted(GUARDED), *JUDGING])
@pytest.mark.usefixtures("unharmed")
def test_no_made_up_request_is_too_much(server: Server, path: str, full: bool) -> None:
    assert 400 in sent_to(server, path, MANY if full else EXAMPLES)


@pytest.mark.parametrize("path", [*READING, "/v1/moderations"])
@pytest.mark.usefixtures("unharmed")
def test_several_processes_are_not_shared_either(
    strict_server: Server, path: str, full: bool
) -> None:
    assert sent_to(strict_server, path, MANY if full else EXAMPLES) & {200, 400}


HALF = "\ud800"
ODD_FIELDS: tuple[dict[str, Any], ...] = (
    {"stop": [HALF]},
    {"bad_words": [HALF]},
    {"request_id": HALF},
    {"vllm_xargs": {HALF: HALF}},
    {"kv_transfer_params": {HALF: HALF}},
    {"messages": user(HALF)},
    {"model": HALF},
    {HALF: HALF},
)


@pytest.mark.parametrize("odd", ODD_FIELDS, ids=range(len(ODD_FIELDS)))
def test_half_a_character_is_refused_wherever_it_stands(
    server: Server, odd: dict[str, Any]
) -> None:
    body = {"model": MODEL_NAME, "messages": user("hello"), "max_tokens": 4, **odd}
    with server.http() as http:
        headers = {"content-type": "application/json"}
        refused = http.post(CHAT, content=json.dumps(body), headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_json"


GRAMMARS: tuple[dict[str, Any], ...] = ({"regex": "("}, {"structural_tag": "x"}, {"choice": []})
NAMED = {"type": "function", "function": {"name": "f"}}
ANSWER = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
FAILS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(
        ("/v1/responses", {"input": [*user("hello"), {**ANSWER, "content": content}]})
        for content in ([], [{"type": "refusal", "refusal": "no"}])
    ),
    (CHAT, {"messages": user("hello"), "structured_outputs": False}),
    (CHAT, {"messages": user("hello"), "tools": [{}], "tool_choice": NAMED}),
    ("/v1/completions", {"prompt": "hello", "structured_outputs": [5]}),
    *(
        ("/v1/responses", {"input": "hello", "stream": True, "structured_outputs": wrong})
        for wrong in GRAMMARS
    ),
)
"""What vLLM alone answers with a 500, or with half of an answer."""


@pytest.mark.parametrize(("path", "wrong"), FAILS, ids=range(len(FAILS)))
@pytest.mark.usefixtures("unharmed")
def test_requests_that_vllm_fails_on_are_refused(
    server: Server, path: str, wrong: dict[str, Any]
) -> None:
    with server.http() as http:
        refused = http.post(path, json={"model": MODEL_NAME, **wrong})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["type"] == "invalid_request_error"


TARGETS = (
    b"/console/static/../login.py",
    b"/console/static/../../../../../../etc/passwd",
    b"/console/static/%2e%2e/login.py",
    b"/console/static/..%2flogin.py",
    b"/console/static/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"/console/static/..%5clogin.py",
    b"/console/static/console.css%00.html",
    b"//etc/passwd",
    b"/console/%ff%fe",
    b"/console/flags?q=\xff\xfe",
    b"/console/flags?\x00",
    b"/console/flags?" + b"a" * 60_000,
    b"/v1/guard/flags?adapter=%00&user_hash=%00&request_id=%00",
    b"/v1/guard/users/%0d%0aset-cookie:a=b/",
    b"/console/%0d%0aset-cookie:a=b/",
    b"/console/login?next=/console/%0d%0aset-cookie:a=b",
    b"/v1/guard/flags/%0d%0aset-cookie:a=b",
    b"http://evil.example/console/flags",
    b"*",
)
HEADERS = (
    b"Host: [::1",
    b"Host: evil.example",
    b"Host: ",
    b"Origin: http://[",
    b"Cookie: setback_session=\xff\xfe",
    b"Cookie: setback_session=a.b.c",
    b"Authorization: Bearer \xff",
    b"Authorization: \xff",
    b"X-Api-Key: \xff",
    b"X-Request-Id: \xff\xfe",
    b"X-Request-Id: a\x0bset-cookie: a=b",
    b"X-Request-Id: " + b"a" * 60_000,
    b"X-Setback-Stream: \xff",
    b"Traceparent: 00-\xff",
    b"Content-Length: -1",
    b"Transfer-Encoding: nonsense",
    b"Range: bytes=0-,5-99999999999999999999",
    b"Accept-Encoding: \xff",
)


def answer_to(server: Server, target: bytes, header: bytes = b"") -> bytes:
    """Returns head and beginning of the body of the response to a malformed request."""
    address = urlsplit(server.base_url)
    assert address.port is not None
    head = b"GET %s HTTP/1.1\r\nConnection: close\r\n" % target
    if not header.startswith(b"Host:"):
        head += b"Host: 127.0.0.1\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head + header + (b"\r\n\r\n" if header else b"\r\n"))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.usefixtures("unharmed")
def test_no_path_leads_out_of_the_files_or_into_the_headers(server: Server) -> None:
    for target in TARGETS:
        head, _, body = answer_to(server, target).partition(b"\r\n\r\n")
        assert head.startswith(FINE), target
        assert b"\nset-cookie" not in head.lower(), target
        assert b"root:" not in body, target
        assert b"import " not in body, target


@pytest.mark.usefixtures("unharmed")
def test_no_header_is_too_much(server: Server) -> None:
    for header in HEADERS:
        for target in (b"/console/flags", b"/console/static/console.css", b"/v1/guard/flags"):
            head, _, _ = answer_to(server, target, header).partition(b"\r\n\r\n")
            assert head.startswith(FINE), header
            assert b"\nset-cookie" not in head.lower(), header
