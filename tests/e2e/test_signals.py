"""A server's traces, webhooks and JSON log are complete, attributable to requests, and without
texts."""

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from queue import Queue
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import pytest

from guard.store import migrate
from guard.store.flags import StoredFlag
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from tests.e2e.collector import Collector, collecting
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.e2e.loop import ask as stored
from tests.json_server import JsonHandler, serving

pytestmark = pytest.mark.e2e

KEY = "sk-never-in-any-log"
HARMFUL = "My plan is to smuggle moon wine past the meadow. Where do I start?"
FIELDS = {"timestamp", "level", "logger", "event", "process", "pid"}
AS_TEXT = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:INFO|WARNING|ERROR).*", re.MULTILINE)
"""How vLLM's and uvicorn's lines begin otherwise."""
PROCESSES = {"APIServer", "EngineCore"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as it:
        yield it


class Receiver(JsonHandler):
    """Receives webhooks."""

    taken: ClassVar[Queue[tuple[dict[str, str], dict[str, Any]]]] = Queue()

    def do_POST(self) -> None:
        """Keeps the event."""
        self.taken.put((dict(self.headers), self.body()))
        self.send(200, {})


@pytest.fixture(scope="module")
def receiver() -> Iterator[str]:
    with serving(Receiver) as url:
        yield url


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector, receiver: str
) -> Iterator[Server]:
    """Logs in JSON, sends its traces to the collector and its events to the receiver, and requires
    a key."""
    folder = tmp_path_factory.mktemp("signals")
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    options = ["--log-format", "json", "--api-key", KEY]
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        # Slow machines get enough time to finish a revision.
        "SETBACK_REVISION_TIMEOUT_S": "120",
        "SETBACK_WEBHOOK_URL": receiver,
        "SETBACK_WEBHOOK_SECRET": f"whsec_{b64encode(bytes(32)).decode()}",
    }
    with running_server(
        folder,
        database,
        lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
        environment=environment,
    ) as it:
        yield it


def ask(server: Server, *, stream: bool, **headers: str) -> httpx.Response:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": HARMFUL}],
        "temperature": 0,
        "stream": stream,
    }
    with server.http() as http:
        return http.post(
            "/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {KEY}", **headers},
        )


def newest_flag(server: Server) -> StoredFlag:
    flags: list[StoredFlag] = stored(ReviewStore(server.database), lambda s: s.page(Filter(), 1))
    return flags[0]


def attributes(span: Any) -> dict[str, str]:
    """Returns its string attributes."""
    return {attribute.key: attribute.value.string_value for attribute in span.attributes}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_below_its_callers(
    server: Server, collector: Collector, stream: bool
) -> None:
    trace_id, caller = uuid4().hex, uuid4().hex[:16]
    answer = ask(
        server,
        stream=stream,
        **{"traceparent": f"00-{trace_id}-{caller}-01", "x-request-id": trace_id},
    )
    assert answer.status_code == 200
    spans = collector.trace(trace_id)
    names = Counter(span.name for span in spans)
    assert set(names) == {"guard", "draft", "critique", "revision", "store"}
    assert names["guard"] == names["draft"] == names["revision"] == names["store"] == 1
    (guard,) = [span for span in spans if span.name == "guard"]
    assert guard.parent_span_id.hex() == caller
    assert {span.parent_span_id for span in spans if span is not guard} == {guard.span_id}
    guard_attributes = attributes(guard)
    assert (guard_attributes["setback.request_id"], guard_attributes["setback.action"]) == (
        trace_id,
        "revise",
    )
    assert collector.services == {"setback"}
    sent = b"".join(span.SerializeToString() for span in spans)
    flag = newest_flag(server)
    assert trace_id in flag.request_id
    for text in (HARMFUL, flag.answer, str(flag.revision)):
        assert not any(word.encode() in sent for word in text.split() if len(word) > 8)


def test_a_flag_is_told_to_the_receiver(server: Server) -> None:
    mine = uuid4().hex
    ask(server, stream=False, **{"x-request-id": mine})
    while True:
        headers, event = Receiver.taken.get(timeout=60)
        if mine in event["data"]["request_id"]:
            break
    assert (event["type"], event["data"]["action"]) == ("flag.created", "revise")
    assert headers["webhook-id"] == f"flag.created-{event['data']['id']}"
    assert headers["webhook-signature"].startswith("v1,")
    assert HARMFUL not in json.dumps(event)


def test_every_line_of_the_log_is_an_object_without_secrets(server: Server) -> None:
    mine = uuid4().hex
    ask(server, stream=False, **{"x-request-id": mine})
    with server.http() as http:
        refused = http.get("/v1/guard/flags?q=meadow")
    assert refused.status_code == 401
    log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert all(line.keys() >= FIELDS for line in lines)
    assert {line["process"] for line in lines} >= PROCESSES
    assert {line["logger"] for line in lines} >= {"vllm.setback", "uvicorn.access"}
    assert not AS_TEXT.findall(log)
    about = {line["request_id"]: line["event"] for line in lines if "request_id" in line}
    assert "POST /v1/chat/completions" in about[mine]
    assert "GET /v1/guard/flags HTTP" in about[refused.headers["x-request-id"]]
    flag = newest_flag(server)
    for secret in (KEY, HARMFUL, flag.answer, str(flag.revision), "meadow"):
        assert secret not in log
