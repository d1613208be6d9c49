"""Log lines name their request, JSON or not, and contain no query."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.telemetry import logs
from server.telemetry.logs import JsonFormatter, RequestIdMiddleware

OURS = "vllm.setback"


@contextmanager
def written_by(handler: logging.Handler) -> Iterator[None]:
    """Our logger with that handler alone."""
    logger = logging.getLogger(OURS)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Returns our log lines in JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    with written_by(handler):
        yield written


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def answered(app: RequestIdMiddleware, *headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the response's headers."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "headers": list(headers)}, receive, send)
    return dict(sent[0]["headers"])


async def speaks(scope: Scope, _receive: Receive, send: Send) -> None:
    logging.getLogger(OURS).warning("Said by %s", dict(scope["headers"])[b"x-request-id"].decode())
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"x-request-id", b""),),
        ((b"x-request-id", b"mine"),),
        ((b"x-request-id", b"long" * 100),),
    ],
)
async def test_every_request_has_an_id(
    headers: tuple[tuple[bytes, bytes], ...], lines: io.StringIO
) -> None:
    told = (await answered(RequestIdMiddleware(speaks), *headers))[b"x-request-id"].decode()
    assert told == "mine" or len(told) == 32
    line = json.loads(lines.getvalue())
    assert line["request_id"] == told
    assert line["event"] == f"Said by {told}"


def test_a_line_is_one_object(lines: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger(OURS).exception("It failed:\n%s", "badly")
    line = json.loads(lines.getvalue())
    assert lines.getvalue().count("\n") == 1
    assert (line["level"], line["logger"], line["event"]) == ("error", OURS, "It failed:\nbadly")
    assert line["exception"].endswith("ValueError: two\nlines")
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)
    assert "request_id" not in line


@pytest.fixture
def set_up() -> Iterator[None]:
    """Sets up logging as in an API process that logs text."""
    loggers = [logging.getLogger(name) for name in (OURS, "uvicorn.access")]
    before = [list(logger.filters) for logger in loggers]
    logs.set_up("text")
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters = filters


async def test_our_text_lines_begin_with_the_id(set_up: None) -> None:
    written = io.StringIO()
    with written_by(logging.StreamHandler(written)):
        await answered(RequestIdMiddleware(speaks), (b"x-request-id", b"100%s"))
    assert written.getvalue() == "100%s: Said by 100%s\n"


def test_access_lines_have_no_query(set_up: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "uvicorn.access"):
        logging.getLogger("uvicorn.access").info(
            '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/v1/guard/flags?q=word", "1.1", 200
        )
    assert caplog.messages == ['127.0.0.1:1 - "GET /v1/guard/flags HTTP/1.1" 200']
