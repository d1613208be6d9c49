"""The served model as the refine loop uses it: answers and label reads of any adapter, through the
server's refine routes. Owns the format of conversations, batching and error handling. Holds no
model. Judges nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import httpx

from guard.prompts import CritiqueStyle
from refine.errors import ServerUnavailable

Message = Mapping[str, str]
Conversation = Sequence[Message]
Adapter = Literal["base", "active"] | int
"""The adapter to use: none, the active one, or a numbered one."""

TOKEN_HEADER = "x-setback-refine-token"
_ROUTES = "/v1/guard/refine"
_BATCH = 64
_MAX_CONCURRENT = 2
_TIMEOUT_S = 600.0


def user_turn(content: str) -> tuple[Message, ...]:
    """Returns a conversation of one user turn."""
    return ({"role": "user", "content": content},)


def answered(messages: Conversation, answer: str) -> tuple[Message, ...]:
    """Returns the conversation with the assistant's answer."""
    return (*messages, {"role": "assistant", "content": answer})


def questioned(messages: Conversation, answer: str, question: str) -> tuple[Message, ...]:
    """Returns the conversation with the assistant's answer and a question about it."""
    return (*answered(messages, answer), *user_turn(question))


@dataclass(frozen=True)
class GenerationParams:
    """How an answer is generated: at most `max_tokens`, the most likely tokens at temperature 0.

    reminder: add the guard's reminder (the paper's step 4).
    """

    max_tokens: int = 96
    temperature: float = 0.0
    seed: int | None = None
    reminder: bool = False


GREEDY = GenerationParams()


class Model(Protocol):
    """The requests that the refine loop makes to a model. Results are in the order of the input."""

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        params: GenerationParams = GREEDY,
    ) -> list[str]:
        """Returns the answer to each conversation."""

    async def harm(
        self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
    ) -> list[float]:
        """Returns P(harmful) of each conversation's last answer, from the unguided label read.

        reminder: as in GenerationParams.
        """

    async def text_harm(self, texts: Sequence[str], *, adapter: Adapter) -> list[float]:
        """Returns P(harmful) of each free-standing text, in [0, 1]."""

    async def lengths(self, conversations: Sequence[Conversation]) -> list[int | None]:
        """Returns the tokens of each conversation; None if the chat template refuses it."""


@dataclass(frozen=True)
class ServedInfo:
    """What a running server says about its model.

    model: the served model name. base: the path or Hub id of the base model.
    active: the active adapter's version, None for the base model. critique: the critique style of
    the active adapter. reminder: whether the server adds the reminder (the paper's step 4).
    chat_template: Jinja, if it is not the model's own. world: the model's registered world, if any.
    """

    model: str
    base: str
    model_revision: str
    max_model_len: int
    max_lora_rank: int
    active: int | None
    critique: CritiqueStyle = CritiqueStyle.YES_NO
    reminder: bool = True
    chat_template: str | None = None
    world: str | None = None

    @property
    def learned_style(self) -> CritiqueStyle:
        """The critique style that the next adapter is trained in. TONE is only for models without
        training as judges."""
        worded = self.critique is CritiqueStyle.YES_NO
        return CritiqueStyle.YES_NO if worded else CritiqueStyle.LABEL


@dataclass(frozen=True)
class ServedVerdict:
    """harm: uncalibrated P(harmful). category_scores: joint probabilities, which sum to harm.
    criteria: the probability that each criterion that was read applies."""

    harm: float
    category_scores: Mapping[str, float]
    criteria: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyText:
    """A policy, in force or not: the text of its file, and its name there."""

    text: str
    name: str


class Server(Model, Protocol):
    """A running server whose model can be used."""

    async def verdicts(
        self,
        kind: Literal["conversations", "texts"],
        items: Sequence[Any],
        *,
        adapter: Adapter,
        policy: PolicyText | None = None,
    ) -> list[ServedVerdict]:
        """Returns verdicts with categories, on conversations that end with an answer or on texts.

        policy: its criteria are read too. Raises ServerUnavailable.
        """

    async def info(self) -> ServedInfo:
        """Returns information about the served model."""

    async def unload(self, version: int) -> None:
        """Unloads a candidate from the server."""


class ServedModel:
    """A Server over HTTP. Every method raises ServerUnavailable with the server's error.

    url: the server's root, without /v1. token: the refine token of the server's database.
    Usage: `async with ServedModel(url, token) as model: ...`
    """

    def __init__(self, url: str, token: str, api_key: str | None = None) -> None:
        headers = {TOKEN_HEADER: token}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._url = url
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S)
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def __aenter__(self) -> "ServedModel":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._client.aclose()

    async def info(self) -> ServedInfo:
        """See Server."""
        fields = await self._call("GET", "/model")
        return ServedInfo(**{**fields, "critique": CritiqueStyle(fields["critique"])})

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        params: GenerationParams = GREEDY,
    ) -> list[str]:
        """See Model."""
        options = {"adapter": adapter, **asdict(params)}
        replies = await self._in_batches("/answers", "conversations", conversations, options)
        return [answer for reply in replies for answer in reply["answers"]]

    async def harm(
        self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
    ) -> list[float]:
        """See Model."""
        options = {"adapter": adapter, "reminder": reminder}
        return await self._harms("conversations", conversations, options)

    async def text_harm(self, texts: Sequence[str], *, adapter: Adapter) -> list[float]:
        """See Model."""
        return await self._harms("texts", texts, {"adapter": adapter})

    async def verdicts(
        self,
        kind: Literal["conversations", "texts"],
        items: Sequence[Any],
        *,
        adapter: Adapter,
        policy: PolicyText | None = None,
    ) -> list[ServedVerdict]:
        """See Server."""
        options: dict[str, Any] = {"adapter": adapter, "categories": True}
        if policy is not None:
            options |= {"policy": policy.text, "policy_name": policy.name}
        replies = await self._in_batches("/verdicts", kind, items, options)
        return [
            ServedVerdict(verdict["harm"], verdict["category_scores"], verdict.get("criteria", {}))
            for reply in replies
            for verdict in reply["verdicts"]
        ]

    async def lengths(self, conversations: Sequence[Conversation]) -> list[int | None]:
        """See Model."""
        replies = await self._in_batches("/lengths", "conversations", conversations, {})
        return [length for reply in replies for length in reply["lengths"]]

    async def unload(self, version: int) -> None:
        """See Server."""
        await self._call("DELETE", f"/adapters/{version}")

    async def _harms(
        self, field: str, items: Sequence[Any], options: dict[str, Any]
    ) -> list[float]:
        replies = await self._in_batches("/verdicts", field, items, options)
        return [verdict["harm"] for reply in replies for verdict in reply["verdicts"]]

    async def _in_batches(
        self, path: str, field: str, items: Sequence[Any], options: dict[str, Any]
    ) -> list[Any]:
        batches = [list(items[i : i + _BATCH]) for i in range(0, len(items), _BATCH)]
        calls = (self._call("POST", path, {**options, field: batch}) for batch in batches)
        return await asyncio.gather(*calls)

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._slots:
            try:
                response = await self._client.request(method, _ROUTES + path, json=body)
            except httpx.HTTPError as error:
                raise ServerUnavailable(
                    f"No answer from the server at {self._url} ({type(error).__name__}); start it "
                    "with `setback serve`, or name it with --server"
                ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise ServerUnavailable(
            f"{method} {path} at {self._url} failed with {response.status_code}: "
            f"{_reason(response)}"
        )


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
