"""The guard's place in the HTTP stack: opens a GuardCall around each guarded request. Also refuses
to start an API process whose engine is not guarded, since vLLM skips plugins that fail to load.
Owns neither verdicts nor what responses look like (response.py).
"""

from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.adapters import Adapters
from guard.call import GuardCall, current_call
from guard.errors import GuardError, UnguardedRoute
from server.calls import check_moderation_model, parse_body, read_call
from server.errors import BadRequest, bad_request_response
from server.response import GuardedResponse
from server.routes import GUARDED, path_of
from server.seal import prove


class GuardMiddleware:
    """Named to vLLM with --middleware, which fails hard where a plugin would be skipped."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start_up(scope, receive, send)
        elif scope["type"] == "http" and path_of(scope) in GUARDED and scope["method"] == "POST":
            await self._guarded(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _start_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            prove(scope["app"].state)
        except UnguardedRoute as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await self._app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        _name_request(scope)
        body, replay = await _buffered(receive)
        try:
            call = _read_call(scope, body)
        except BadRequest as error:
            await bad_request_response(error)(scope, receive, send)
            return
        response = GuardedResponse(call, scope, receive, send)
        adapters: Adapters = scope["app"].state.setback.adapters
        token = current_call.set(call)
        try:
            # However often it generates, a request is answered by one adapter.
            with adapters.use():
                call.pin(adapters.active_name, adapters.active)
                await self._app(scope, replay, response.send)
        except Exception as error:
            # Once a stream has begun, Starlette wraps what its generator raised.
            failure = error if isinstance(error, GuardError) else call.error
            if failure is None:
                raise
            await response.fail(failure)
        finally:
            current_call.reset(token)


def _name_request(scope: Scope) -> None:
    """Gives the request an id unless it has one, which vLLM then uses in its own ids and header."""
    headers = MutableHeaders(scope=scope)
    headers.setdefault("x-request-id", uuid4().hex)


def _read_call(scope: Scope, body: bytes) -> GuardCall:
    content = parse_body(body)
    call = read_call(path_of(scope), Headers(scope=scope), content)
    moderation = content.get("moderation")
    if moderation is not None:
        check_moderation_model(moderation["model"], _served(scope), "moderation.model")
    return call


def _served(scope: Scope) -> list[str]:
    return [path.name for path in scope["app"].state.openai_serving_models.base_model_paths]


async def _buffered(receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a `receive` that gives it once more and then goes on as before."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return body, replay
