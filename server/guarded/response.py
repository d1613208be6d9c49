"""The response to one guarded request. Owns the order of sending: the response is held until the
guard's outcome is known, or until a comment has to keep a stream's connection alive, then sent with
the outcome in its status, headers and body; if the guard fails later, an error ends it. The formats
are defined in annotate.py and errors.py.
"""

import json
import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from guard.call import GuardCall
from guard.errors import GuardError
from server.errors import guard_error_response
from server.guarded.annotate import StreamAnnotator, annotate_body
from server.guarded.policy_choice import POLICY_HEADER, header_value

ADAPTER_HEADER = "x-setback-adapter"
_RESPONSES = "/v1/responses"
_RESPONSE_ID = re.compile(rb'"id":\s*"(resp_[^"]+)"')

_SendMessage = Callable[[Message], Awaitable[None]]


class GuardedResponse:
    """Replaces ASGI's `send`. vLLM puts whole server-sent events into each message."""

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
        self._send_next: _SendMessage | None = None
        self.response_id: str | None = None

    @property
    def started(self) -> bool:
        """Whether anything was sent."""
        return self._started

    async def send(self, message: Message) -> None:
        """Handles one ASGI message of the application. Notes the id of a response that may be
        fetched again."""
        # Of this route only: a search in every chunk of a chat would never find one.
        if self._call.route == _RESPONSES and self.response_id is None:
            match = _RESPONSE_ID.search(message.get("body", b""))
            self.response_id = match and match[1].decode()
        if self._call.error is not None:
            # Replaces whatever vLLM sends in this case, be it an error or a normal end.
            await self.fail(self._call.error)
        elif message["type"] == "http.response.start":
            self._head = message
        elif self._send_next is not None:
            await self._send_next(message)
        else:
            self._held.append(message)
            # A Responses stream sends its first events before anything is generated. A comment that
            # keeps the connection alive cannot wait: proxies would close it.
            is_comment = message.get("body", b"").startswith(b":")
            if self._call.has_outcome or is_comment or not message.get("more_body"):
                self._send_next = await self._begin()
                for held in self._held:
                    await self._send_next(held)

    async def fail(self, error: GuardError) -> None:
        """Ends the response with the error: as the status, or as the stream's last event. If both
        are too late, the body stays incomplete."""
        streams, self._send_next = self._send_next == self._stream, _discard
        if not self._started:
            self._started = True
            response = guard_error_response(error)
            await response(self._scope, self._receive, self._send)
        elif streams:
            body = f"{self._annotator.failure(error)}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self) -> _SendMessage:
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
        headers = MutableHeaders(raw=self._head["headers"])
        if self._call.adapter is not None:
            headers[ADAPTER_HEADER] = self._call.adapter
        if self._call.policy is not None:
            headers[POLICY_HEADER] = header_value(self._call.policy)
        await self._send(self._head)

    def _is(self, media_type: str) -> bool:
        headers = MutableHeaders(raw=self._head["headers"])
        return headers.get("content-type", "").startswith(media_type)


async def _discard(_message: Message) -> None:
    """Drops what vLLM sends after the guard's own error."""
