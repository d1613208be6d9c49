"""What the server's processes write to their log. Owns the id of each HTTP request, by which lines
are found again, the JSON form (logging.json beside this module names it to vLLM and uvicorn) and
what is left out of access lines. Keeps no file: lines go to standard output.
"""

import logging
import os
from pathlib import Path
from typing import Literal
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict

LogFormat = Literal["text", "json"]
REQUEST_ID = "x-request-id"
LEVEL = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
"""Of vLLM's lines and ours; logging.json refers to it."""

_CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_CONFIG = Path(__file__).with_name("logging.json")
_LONGEST_ID = 256
_PATH = 2
"""Where uvicorn's access lines have the path, among their arguments."""


def begin_json() -> None:
    """Has this process and its children log in JSON, unless another configuration is named; to be
    called before vLLM is imported, which configures logging."""
    os.environ.setdefault(_CONFIG_VARIABLE, str(_CONFIG))


def set_up(log_format: LogFormat) -> None:
    """In each API process: leaves queries out of access lines, and has our own lines begin with
    the request's id where the form has no field for it."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    if log_format == "text":
        logging.getLogger("vllm.setback").addFilter(_with_request_id)


class JsonFormatter(ProcessorFormatter):
    """One JSON object a line, with request_id in what a request brought about."""

    def __init__(self) -> None:
        super().__init__(
            foreign_pre_chain=[
                merge_contextvars,
                add_log_level,
                add_logger_name,
                TimeStamper(fmt="iso", utc=True),
                _add_process,
            ],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                format_exc_info,
                JSONRenderer(),
            ],
        )


class RequestIdMiddleware:
    """Named to vLLM with --middleware, outermost: each request has an id from here on, its own,
    unless that is too long, or a new one, which vLLM puts into its ids too. The response tells it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if 0 < len(given) <= _LONGEST_ID else uuid4().hex
        headers[REQUEST_ID] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"])[REQUEST_ID] = request_id
            await send(message)

        with bound_contextvars(request_id=request_id):
            await self._app(scope, receive, named)


def _add_process(_logger: object, _method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    event["process"] = getattr(record, "vllm_process_name", record.processName)
    event["pid"] = record.process
    return event


def _with_request_id(record: logging.LogRecord) -> bool:
    if request_id := get_contextvars().get("request_id"):
        record.msg, record.args = f"{request_id}: {record.getMessage()}", ()
    return True


def _without_query(record: logging.LogRecord) -> bool:
    # What reviewers search for may be words of a withheld answer.
    if isinstance(record.args, tuple) and len(record.args) > _PATH:
        path = str(record.args[_PATH]).partition("?")[0]
        record.args = (*record.args[:_PATH], path, *record.args[_PATH + 1 :])
    return True
