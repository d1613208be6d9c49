"""The guard's ASGI middleware. Owns the GuardCall and the span around each guarded request, and the
check at start-up that this process's engine is guarded, because vLLM skips plugins that fail to
load. Does not judge (guard/) or shape responses (response.py).
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, use_span
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.adapters import BASE_ADAPTER
from guard.call import GuardCall, current_call
from guard.errors import GuardError, UnguardedRoute
from guard.policy import STRICTNESS
from guard.rollouts import Rollouts
from guard.traces import note, span
from server.auth.access import CALLER
from server.errors import BadRequest, bad_request_response, guard_error_response
from server.guarded.masked_request import masked_request
from server.guarded.policy_choice import policy_of
from server.guarded.request import check_moderation_model, parse_body, read_call
from server.guarded.response import GuardedResponse
from server.guarded.tools import check_tools
from server.launch.guarded_handlers import check_guarded
from server.routes.body import read_body, replayed, with_length
from server.routes.open import GUARDED, path_of
from server.telemetry.logs import REQUEST_ID

_STORED = "/v1/responses/"
_MAX_STORED_CALLS = 10_000


class GuardMiddleware:
    """Passed to vLLM as --middleware: unlike a plugin, it cannot be skipped if it fails to load."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # Like vLLM's own store of responses, this is of one process and gone with it.
        self._stored_calls: OrderedDict[str, GuardCall] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start_up(scope, receive, send)
        elif scope["type"] == "http" and path_of(scope) in GUARDED and scope["method"] == "POST":
            await self._guarded(scope, receive, send)
        elif scope["type"] == "http" and path_of(scope).startswith(_STORED):
            await self._stored(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _stored(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a stored response, or one that is made in the background, with the findings."""
        number = path_of(scope).removeprefix(_STORED).partition("/")[0]
        call = self._stored_calls.get(number)
        if call is not None and call.error is None:
            send = GuardedResponse(call, scope, receive, send).send
        await self._app(scope, receive, send)

    def _remember(self, response_id: str, call: GuardCall) -> None:
        # Without the conversation, which may be large. The rulings are shared: a response that is
        # made in the background gets its own later.
        self._stored_calls[response_id] = replace(
            call, messages=(), open_turn="", tool_results="", call_reader=None
        )
        while len(self._stored_calls) > _MAX_STORED_CALLS:
            self._stored_calls.popitem(last=False)

    async def _start_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_guarded(scope["app"].state)
        except UnguardedRoute as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await self._app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, _ = await read_body(receive)
        try:
            call, body = await _read_call(scope, body)
        except BadRequest as error:
            await bad_request_response(error)(scope, receive, send)
            return
        except GuardError as error:
            await guard_error_response(error)(scope, receive, send)
            return
        scope, replay = with_length(scope, len(body)), replayed(body, receive)
        response = GuardedResponse(call, scope, receive, send)
        rollouts: Rollouts = scope["app"].state.setback.rollouts
        token = current_call.set(call)
        try:
            # One adapter answers the whole request, however often it generates.
            with _traced(call, scope):
                async with rollouts.pinned(call):
                    await self._app(scope, replay, response.send)
        except Exception as error:
            # After a stream has begun, Starlette wraps the exception of its generator.
            failure = error if isinstance(error, GuardError) else call.error
            if failure is not None:
                await response.fail(failure)
            elif response.started or not _is_client_error(error.__cause__):
                raise
            else:
                # vLLM thought that the response had begun, so it could not report the error itself.
                refusal = BadRequest(str(error.__cause__), "body")
                await bad_request_response(refusal)(scope, receive, send)
        finally:
            current_call.reset(token)
            if response.response_id is not None:
                self._remember(response.response_id, call)


def _is_client_error(error: BaseException | None) -> bool:
    """Whether vLLM found an error in the request itself."""
    from vllm.exceptions import VLLMClientError

    return isinstance(error, VLLMClientError)


@contextmanager
def _traced(call: GuardCall, scope: Scope) -> Iterator[None]:
    """Opens a span around the request, as a child of the caller's span, and notes the outcome."""
    headers = Headers(scope=scope)
    with span(
        "guard", parent=extract(headers), kind=SpanKind.SERVER, route=call.route
    ) as request_span:
        try:
            with use_span(request_span, record_exception=False, set_status_on_exception=False):
                yield
        finally:
            _note_outcome(request_span, call, headers.get(REQUEST_ID, ""))


def _note_outcome(request_span: Span, call: GuardCall, request_id: str) -> None:
    note(request_span, request_id=request_id, adapter=call.adapter or BASE_ADAPTER)
    if call.output_rulings:
        actions = (ruling.decision.action for ruling in call.output_rulings.values())
        note(request_span, action=max(actions, key=STRICTNESS.__getitem__).value)
    if call.error is not None:
        request_span.set_attribute("error.type", call.error.code)


async def _read_call(scope: Scope, body: bytes) -> tuple[GuardCall, bytes]:
    """Returns the call, and the body with what the policy masks in it. Raises BadRequest,
    PolicyUnknown or PolicyRefused."""
    content = parse_body(body)
    policy = policy_of(scope, content.get("model"))
    masked = await masked_request(content, policy)
    headers = Headers(scope=scope)
    call = read_call(path_of(scope), headers, masked.content)
    call.masked_input, call.policy = masked.names, policy
    call.client = call.user or scope.get(CALLER) or headers.get(REQUEST_ID)
    moderation = content.get("moderation")
    if moderation is not None:
        check_moderation_model(moderation["model"], _served(scope), "moderation.model")
    check_tools(content, policy)
    return call, json.dumps(masked.content).encode() if masked.names else body


def _served(scope: Scope) -> list[str]:
    return [path.name for path in scope["app"].state.openai_serving_models.base_model_paths]
