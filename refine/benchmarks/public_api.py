"""A running server through its public HTTP API. Owns the requests, the retries and the parsing of
responses. Does not store verdicts (verdict_store.py) or compute figures (scores.py).

Texts and requests are judged by `/v1/moderations` as `input`, answers as `messages`. With the route
`chat`, a request is answered by `/v1/chat/completions` with `moderation`, and is flagged if the
request or its answer is.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

from refine.benchmarks.rows import BenchmarkRow
from refine.errors import ServerChanged, ServerUnavailable

ADAPTER_HEADER: Final = "x-setback-adapter"
RequestRoute = Literal["moderations", "chat"]
UNKNOWN: Final = "unknown"
_MODERATION_MODEL = "omni-moderation-latest"
_RETRY_STATUSES = (429, 502, 503, 504)
_FATAL_STATUSES = (401, 403, 404, 405)
_MAX_ATTEMPTS = 6
_MAX_PAUSE_S = 60.0
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class ServerAddress:
    """A server's root URL, and its name in reports."""

    name: str
    url: str


@dataclass(frozen=True)
class Identity:
    """What serves. Verdicts of different identities are never mixed.

    model: the served name. model_revision, policy: hashes. adapter: "base" or a version. Anything
    that a server does not reveal is "unknown".
    """

    model: str
    model_revision: str
    policy: str
    adapter: str

    def __str__(self) -> str:
        return (
            f"model {self.model}, revision {self.model_revision[:12]}, policy {self.policy[:12]}, "
            f"adapter {self.adapter}"
        )


@dataclass(frozen=True)
class ServedVerdict:
    """The server's verdict on one row. score: see `_score`; None if it sent no scores."""

    flagged: bool
    score: float | None


class RowFailed(Exception):
    """The server gave no verdict on one row. The message is the reason."""


class PublicApi:
    """A server as its clients see it. Usage: `async with PublicApi(address, key) as api: ...`

    route: of requests. pause: waits before a retry.
    """

    def __init__(
        self,
        address: ServerAddress,
        api_key: str | None = None,
        *,
        route: RequestRoute = "moderations",
        max_tokens: int = 128,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self.address = address
        self._route = route
        self._max_tokens = max_tokens
        self._pause = pause
        self._client = httpx.AsyncClient(
            base_url=address.url,
            headers=headers,
            timeout=_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
        )
        self._identity: Identity | None = None

    async def __aenter__(self) -> "PublicApi":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._client.aclose()

    @property
    def manner(self) -> str:
        """How requests are sent, as far as it affects verdicts."""
        return "moderations" if self._route == "moderations" else f"chat {self._max_tokens}"

    async def identity(self) -> Identity:
        """Finds out what serves now, by judging a harmless text.

        Raises ServerUnavailable, and ServerChanged if something else served before.
        """
        response = await self._send("/v1/moderations", {"input": "Hello."})
        if not response.is_success:
            raise ServerUnavailable(f"{self.address.url}: {_reason(response)}")
        try:
            body = _object(response)
        except RowFailed as error:
            raise ServerUnavailable(f"{self.address.url}/v1/moderations: {error}") from error
        build = await self._build()
        current = Identity(
            str(body.get("model", UNKNOWN)),
            build.get("model_revision", UNKNOWN),
            build.get("policy", UNKNOWN),
            response.headers.get(ADAPTER_HEADER, UNKNOWN),
        )
        if self._identity is not None and current != self._identity:
            raise self._changed(current)
        self._identity = current
        return current

    async def verdict(self, row: BenchmarkRow) -> ServedVerdict:
        """Returns the server's verdict on a row.

        Raises RowFailed, ServerUnavailable, or ServerChanged when another adapter gave it.
        """
        if row.kind == "request" and self._route == "chat":
            return await self._chat_verdict(row)
        body: dict[str, Any] = {"model": _MODERATION_MODEL}
        if row.kind == "answer":
            body["messages"] = row.messages
        else:
            body["input"] = row.messages[-1]["content"]
        response = self._checked(await self._send("/v1/moderations", body))
        return _verdict(_object(response).get("results"))

    async def _chat_verdict(self, row: BenchmarkRow) -> ServedVerdict:
        identity = self._identity or await self.identity()
        body = {
            "model": identity.model,
            "messages": row.messages,
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "moderation": {"model": _MODERATION_MODEL},
        }
        response = await self._send("/v1/chat/completions", body)
        if response.status_code == 400 and _error(response).get("code") == "content_filter":
            return ServedVerdict(flagged=True, score=None)
        moderation = _object(self._checked(response)).get("moderation")
        if not isinstance(moderation, dict):
            raise RowFailed("the response has no moderation field")
        verdicts = [_side(moderation.get(name)) for name in ("input", "output")]
        return ServedVerdict(
            any(verdict.flagged for verdict in verdicts),
            max((verdict.score for verdict in verdicts if verdict.score is not None), default=None),
        )

    def _checked(self, response: httpx.Response) -> httpx.Response:
        """Returns a successful response by the evaluated adapter."""
        if not response.is_success:
            raise RowFailed(_reason(response))
        adapter = response.headers.get(ADAPTER_HEADER, UNKNOWN)
        if self._identity is not None and adapter != self._identity.adapter:
            raise self._changed(Identity(**asdict(self._identity) | {"adapter": adapter}))
        return response

    async def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Returns the response, after retries if needed. Raises ServerUnavailable."""
        # ASCII, so that lone surrogates of a text arrive unchanged.
        content = json.dumps(body)
        failure: httpx.HTTPError | None = None
        for attempt in range(_MAX_ATTEMPTS):
            try:
                response = await self._client.post(path, content=content)
            except httpx.HTTPError as error:
                failure, wait = error, 0.5 * 2**attempt
                if self._identity is None or attempt == _MAX_ATTEMPTS - 1:
                    # A server that never answered is not running; any other may come back.
                    break
            else:
                if failure is not None and self._identity is not None:
                    # The server was down: a different one may have replaced it.
                    failure = None
                    await self.identity()
                if response.status_code in _FATAL_STATUSES:
                    raise ServerUnavailable(f"{self.address.url}{path}: {_reason(response)}")
                if response.status_code not in _RETRY_STATUSES or attempt == _MAX_ATTEMPTS - 1:
                    return response
                wait = _retry_after(response, 0.5 * 2**attempt)
            await self._pause(min(wait, _MAX_PAUSE_S))
        raise ServerUnavailable(
            f"No answer from the server at {self.address.url} ({type(failure).__name__}); start it "
            "with `setback serve`, or name it with --server"
        ) from failure

    async def _build(self) -> Mapping[str, str]:
        """Returns the build labels in the server's metrics; empty if these are not public."""
        try:
            response = await self._client.get("/metrics")
        except httpx.HTTPError:
            return {}
        if not response.is_success:
            return {}
        try:
            families = list(text_string_to_metric_families(response.text))
        except ValueError:
            return {}
        samples = [sample for family in families for sample in family.samples]
        builds = [sample.labels for sample in samples if sample.name == "setback_build_info"]
        return builds[-1] if builds else {}

    def _changed(self, current: Identity) -> ServerChanged:
        previous = self._identity
        adapter_only = previous is not None and asdict(previous) | {
            "adapter": current.adapter
        } == asdict(current)
        return ServerChanged(
            f"{self.address.url} changed while it was measured: before {previous}; now {current}. "
            "Verdicts of the two are not mixed. Run the command again to measure what serves now",
            adapter_only=adapter_only,
        )


def _side(side: object) -> ServedVerdict:
    """Returns the verdict on one side of a chat completion. Not judged means not flagged."""
    fields = side if isinstance(side, dict) else {}
    if fields.get("type") == "error":
        if fields.get("code") == "not_run":
            return ServedVerdict(flagged=False, score=None)
        raise RowFailed(f"{fields.get('code')}: {fields.get('message')}")
    return _verdict(fields.get("results"))


def _verdict(results: object) -> ServedVerdict:
    """Returns the single verdict of a response."""
    if not (isinstance(results, list) and results and isinstance(results[0], dict)):
        raise RowFailed("the response has no results")
    result = results[0]
    if not isinstance(result.get("flagged"), bool):
        raise RowFailed("the response does not say whether it is flagged")
    return ServedVerdict(result["flagged"], _score(result.get("category_scores")))


def _score(scores: object) -> float | None:
    """Returns P(harmful): the sum of the category scores, at most 1."""
    if not isinstance(scores, dict) or not scores:
        return None
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise RowFailed("the response has category_scores that are not numbers")
    return min(1.0, max(0.0, math.fsum(scores.values())))


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RowFailed("the response is not a JSON object")
    return body


def _error(response: httpx.Response) -> Mapping[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _reason(response: httpx.Response) -> str:
    message = _error(response).get("message") or response.text[:200]
    return f"{response.status_code}: {message}"


def _retry_after(response: httpx.Response, default: float) -> float:
    """Returns the pause in seconds; servers that send a date get the default."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return default
