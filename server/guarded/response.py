"""The response to one guarded request on its way out: held until the guard's outcome is known,
then sent with the outcome in its status, headers and body. A guard that fails later ends it with an
error. Owns that order; the shapes are annotate.py's and errors.py's.
"""

import json
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from guard.call import GuardCall
from guard.errors import GuardError
from server.errors import guard_error_response
from server.guarded.annotate import StreamAnnotator, annotate_body

ADAPTER_HEADER = "x-setback-adapter"

_Sink = Callable[[Message], Awaitable[None]]


class GuardedResponse:
    """Stands in for ASGI's `send`. vLLM puts whole server-sent events into each message."""

    def __init__(self, call: GuardCall, scope: Scope, receive: Receive, send: Send) -> None:
        self._call = call
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head: Message = {}
        self._held: list[Message] = []
        self._body = b""
        self._annotator = StreamAnnotator(call)
        self._started = False
        self._sink: _Sink | None = None

    @property
    def started(self) -> bool:
        """Whether anything was let out."""
        return self._started

    async def send(self, message: Message) -> None:
        """Takes one ASGI message of the application."""
        if self._call.error is not None:
            # Whatever vLLM makes of it: it has its own error for it, and an end like any other.
            await self.fail(self._call.error)
        elif message["type"] == "http.response.start":
            self._head = message
        elif self._sink is not None:
            await self._sink(message)
        else:
            self._held.append(message)
            # A Responses stream announces itself before anything is generated.
            if self._call.has_outcome or not message.get("more_body"):
                self._sink = await self._begin()
                for held in self._held:
                    await self._sink(held)

    async def fail(self, error: GuardError) -> None:
        """Ends the response with the error, in its status or as its stream's last event. Where
        neither is left to do, the body stays incomplete."""
        streams, self._sink = self._sink == self._stream, _dropped
        if not self._started:
            self._started = True
            response = guard_error_response(error)
            await response(self._scope, self._receive, self._send)
        elif streams:
            body = f"{self._annotator.failure(error)}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self) -> _Sink:
        if self._is("text/event-stream"):
            await self._send_head()
            return self._stream
        if self._call.annotated and self._head["status"] == 200 and self._is("application/json"):
            return self._whole
        await self._send_head()
        return self._send

    async def _stream(self, message: Message) -> None:
        events = message.get("body", b"").decode().split("\n\n")
        sent = [out for event in events if event for out in self._annotator.events(event)]
        body = "".join(f"{event}\n\n" for event in sent).encode()
        await self._send({**message, "body": body})

    async def _whole(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = json.dumps(annotate_body(self._call, json.loads(self._body))).encode()
        MutableHeaders(raw=self._head["headers"])["content-length"] = str(len(body))
        await self._send_head()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_head(self) -> None:
        self._started = True
        if self._call.adapter is not None:
            MutableHeaders(raw=self._head["headers"])[ADAPTER_HEADER] = self._call.adapter
        await self._send(self._head)

    def _is(self, media_type: str) -> bool:
        headers = MutableHeaders(raw=self._head["headers"])
        return headers.get("content-type", "").startswith(media_type)


async def _dropped(_message: Message) -> None:
    """What vLLM still says after the guard's own error."""
