"""The log of the server's processes. Owns the id of each HTTP request, which marks its log lines,
the JSON format (logging.json beside this module passes it to vLLM and uvicorn) and what is left out
of access logs. Writes no file: lines go to standard output.
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
"""The level of vLLM's lines and ours; logging.json refers to it."""

_CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_CONFIG = Path(__file__).with_name("logging.json")
_MAX_ID_LENGTH = 256
_PATH_INDEX = 2
"""The index of the path among the arguments of uvicorn's access lines."""


def begin_json() -> None:
    """Makes this process and its children log in JSON, unless a logging configuration is set. Call
    it before importing vLLM, which configures logging."""
    os.environ.setdefault(_CONFIG_VARIABLE, str(_CONFIG))


def set_up(log_format: LogFormat) -> None:
    """Sets up an API process: drops queries from access lines, and prefixes our own lines with the
    request id where the format has no field for it."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    if log_format == "text":
        logging.getLogger("vllm.setback").addFilter(_with_request_id)


class JsonFormatter(ProcessorFormatter):
    """Formats a line as a JSON object, with the request_id of the request that caused it."""

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
    """Passed to vLLM as --middleware, outermost. Gives each request an id, which vLLM includes in
    its ids: the caller's, unless it is too long, or a new one. The response has it as a header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        own_id = headers.get(REQUEST_ID, "")
        request_id = own_id if 0 < len(own_id) <= _MAX_ID_LENGTH else uuid4().hex
        headers[REQUEST_ID] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"])[REQUEST_ID] = request_id
            await send(message)

        with bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


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
    # A reviewer's search may hold words of a withheld answer.
    if isinstance(record.args, tuple) and len(record.args) > _PATH_INDEX:
        path = str(record.args[_PATH_INDEX]).partition("?")[0]
        record.args = (*record.args[:_PATH_INDEX], path, *record.args[_PATH_INDEX + 1 :])
    return True
