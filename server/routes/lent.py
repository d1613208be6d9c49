"""/v1/guard/refine/*: the served model lent to the refine loop. Owns these routes' requests and
responses and the token that opens them. Answers come from the bare engine: nothing is withheld or
flagged here, so only who can read the database gets in. Trains and measures nothing (refine/).
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.adapters import Adapters, adapter_name
from guard.critic import Critic, Subject
from guard.errors import TemplateUnusable
from guard.tasks import spawn
from guard.template import ChatFormat
from server.errors import BadRequest
from server.guarded.request import bad_field, parse_body
from server.routes.hang_up import unless_hung_up

TOKEN_HEADER = "x-setback-refine-token"
MOST_CONVERSATIONS = 256

_PRIORITY = 1 << 20
"""Behind everybody: callers may ask for any priority from 0 on, and a higher one waits longer."""

_NO_CATEGORIES = 2.0
_LARGEST_VERSION = 2**31 - 1 - (1 << 20)

T = TypeVar("T")


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: str
    content: str


Version = Annotated[int, Field(ge=1, le=_LARGEST_VERSION)]
Adapter = Literal["active", "base"] | Version
Conversation = Annotated[list[Turn], Field(min_length=1)]
Conversations = Annotated[list[Conversation], Field(min_length=1, max_length=MOST_CONVERSATIONS)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_CONVERSATIONS)]


class AnswersRequest(BaseModel):
    """Conversations to answer. seed: of the first; each later one adds 1, so that they differ."""

    model_config = ConfigDict(extra="forbid", strict=True)
    adapter: Adapter
    conversations: Conversations
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31)] | None = None
    reminder: bool = False


class LengthsRequest(BaseModel):
    """Conversations to count the tokens of."""

    model_config = ConfigDict(extra="forbid", strict=True)
    conversations: Conversations


class VerdictsRequest(BaseModel):
    """Conversations that end with the answer to judge, or free-standing texts."""

    model_config = ConfigDict(extra="forbid", strict=True)
    adapter: Adapter
    conversations: Conversations | None = None
    texts: Texts | None = None
    categories: bool = False
    reminder: bool = False


@dataclass(frozen=True)
class Lender:
    """The served model, unguarded and behind everybody else's requests.

    engine: the bare engine client. critic: one that waits as long as low priority takes.
    info: what GET /model tells beside the active adapter.
    """

    engine: Any
    critic: Critic
    chat_format: ChatFormat
    adapters: Adapters
    token: str
    info: dict[str, Any]

    async def answers(self, asked: AnswersRequest, lora_request: LoRARequest | None) -> list[str]:
        """One answer per conversation, in order. Raises BadRequest."""
        prompts_ids = [
            self._prompt(index, conversation, asked.reminder)
            for index, conversation in enumerate(asked.conversations)
        ]
        return await _together(
            self._answer(index, prompt_ids, asked, lora_request)
            for index, prompt_ids in enumerate(prompts_ids)
        )

    async def verdicts(
        self, asked: VerdictsRequest, lora_request: LoRARequest | None
    ) -> list[dict[str, Any]]:
        """One verdict per conversation or text, in order. Raises BadRequest, CriticUnavailable."""
        if (asked.conversations is None) == (asked.texts is None):
            raise BadRequest("Send either conversations or texts.", "conversations")
        subjects = [
            self._judged(index, conversation, asked.reminder)
            for index, conversation in enumerate(asked.conversations or ())
        ] or [self.critic.text(self.chat_format.encode(text)) for text in asked.texts or ()]
        return await _together(self._verdict(each, asked, lora_request) for each in subjects)

    def lengths(self, conversations: Iterable[list[Turn]]) -> list[int | None]:
        """The tokens of each conversation; None where the chat template refuses it."""
        return [self._length(conversation) for conversation in conversations]

    def _length(self, conversation: list[Turn]) -> int | None:
        try:
            return len(self.chat_format.conversation([turn.model_dump() for turn in conversation]))
        except TemplateUnusable:
            return None

    async def _verdict(
        self, subject: Subject, asked: VerdictsRequest, lora_request: LoRARequest | None
    ) -> dict[str, Any]:
        verdict = await self.critic.judge(
            subject,
            categories_from=0.0 if asked.categories else _NO_CATEGORIES,
            lora_request=lora_request,
            priority=_PRIORITY,
        )
        return {"harm": verdict.harm, "category_scores": verdict.category_scores}

    def _judged(self, index: int, conversation: list[Turn], reminder: bool) -> Subject:
        *before, last = conversation
        if last.role != "assistant" or not before:
            raise BadRequest(
                f"conversations.{index} must end with the assistant's answer.",
                f"conversations.{index}",
            )
        prompt_ids = self._prompt(index, before, reminder)
        answer_ids = self.chat_format.encode(last.content)
        size = len(prompt_ids) + len(answer_ids)
        # In windows, as the guard judges what is long, it could not be told what was measured.
        if size > self.critic.room:
            raise self._too_long(index, size, self.critic.room)
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return self.critic.answer(prompt, prompt_ids, answer_ids)

    def _prompt(self, index: int, conversation: list[Turn], reminder: bool) -> list[int]:
        prompt_ids = self._ids(index, conversation)
        if len(prompt_ids) >= self._room:
            raise self._too_long(index, len(prompt_ids), self._room - 1)
        return self.chat_format.reminded(prompt_ids, self._room) if reminder else prompt_ids

    def _ids(self, index: int, conversation: list[Turn]) -> list[int]:
        try:
            return self.chat_format.conversation([turn.model_dump() for turn in conversation])
        except TemplateUnusable as error:
            raise BadRequest(f"conversations.{index}: {error}", f"conversations.{index}") from error

    def _too_long(self, index: int, tokens: int, room: int) -> BadRequest:
        return BadRequest(
            f"conversations.{index} has {tokens} tokens; the context has room for {room}.",
            f"conversations.{index}",
            "context_length_exceeded",
        )

    @property
    def _room(self) -> int:
        room: int = self.info["max_model_len"]
        return room

    async def _answer(
        self,
        index: int,
        prompt_ids: list[int],
        asked: AnswersRequest,
        lora_request: LoRARequest | None,
    ) -> str:
        params = SamplingParams(
            temperature=asked.temperature,
            max_tokens=min(asked.max_tokens, self._room - len(prompt_ids)),
            seed=None if asked.seed is None else asked.seed + index,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = self.engine.generate(
            {"type": "token", "prompt_token_ids": prompt_ids},
            params,
            f"refine-{uuid4().hex}",
            lora_request=lora_request,
            priority=_PRIORITY,
        )
        async with aclosing(outputs):
            (said,) = [output.outputs[0] async for output in outputs]
        text: str = said.text
        return text


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; at the first failure the rest is given up."""
    tasks = [spawn(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _lender(request: Request) -> Lender:
    """Lets in who shows the token; raises BadRequest as a 401 otherwise."""
    lender: Lender = request.app.state.setback.lender
    shown = request.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(shown.encode(), lender.token.encode()):
        raise BadRequest(
            f"Send the refine token of this server's database in {TOKEN_HEADER}.",
            TOKEN_HEADER,
            "invalid_refine_token",
            status=401,
        )
    return lender


Lent = Annotated[Lender, Depends(_lender)]
Body = TypeVar("Body", bound=BaseModel)

router = APIRouter(prefix="/v1/guard/refine")


@router.get("/model")
async def model(lender: Lent) -> dict[str, Any]:
    """What is served, the version of the active adapter (null: the base alone), and how verdicts
    are read of it."""
    with lender.adapters.use() as lora_request:
        critique = lender.adapters.critique_style(lora_request)
    return {**lender.info, "active": lender.adapters.active, "critique": critique}


@router.post("/lengths")
async def lengths(request: Request, lender: Lent) -> dict[str, Any]:
    """The tokens of each conversation; null where the chat template refuses it."""
    asked = _read(LengthsRequest, await request.body())
    found = await asyncio.to_thread(lender.lengths, asked.conversations)
    return {"lengths": found}


@router.post("/answers")
async def answers(request: Request, lender: Lent) -> dict[str, Any]:
    """The unguarded answers of one adapter, at low priority."""
    asked = _read(AnswersRequest, await request.body())
    async with _chosen(lender.adapters, asked.adapter) as lora_request:
        said = await unless_hung_up(request, lender.answers(asked, lora_request))
    return {"adapter": adapter_name(lora_request), "answers": said}


@router.post("/verdicts")
async def verdicts(request: Request, lender: Lent) -> dict[str, Any]:
    """What one adapter, as critic, reads of given answers or texts, at low priority."""
    asked = _read(VerdictsRequest, await request.body())
    async with _chosen(lender.adapters, asked.adapter) as lora_request:
        found = await unless_hung_up(request, lender.verdicts(asked, lora_request))
    return {"adapter": adapter_name(lora_request), "verdicts": found}


@router.delete("/adapters/{version}", status_code=204)
async def unload(version: Version, lender: Lent) -> Response:
    """Takes an adapter that is not active out of the engine's memory; its files stay."""
    await lender.adapters.unload(version)
    return Response(status_code=204)


@asynccontextmanager
async def _chosen(adapters: Adapters, adapter: Adapter) -> AsyncIterator[LoRARequest | None]:
    if adapter == "active":
        with adapters.use() as lora_request:
            yield lora_request
        return
    async with adapters.of(None if adapter == "base" else adapter) as lora_request:
        yield lora_request


def _read(kind: type[Body], body: bytes) -> Body:
    parse_body(body)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise bad_field(error) from error
