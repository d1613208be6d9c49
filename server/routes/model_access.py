"""/v1/guard/refine/*: the refine loop's access to the served model. Owns the requests and responses
of these routes, and the token check. Answers come from the bare engine, so nothing is withheld or
flagged here; only callers who can read the database have the token. Trains and evaluates nothing
(refine/).
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.adapters import Adapters, adapter_name
from guard.criteria import Criterion, Place
from guard.critic import Critic
from guard.errors import PolicyInvalid, TemplateUnusable
from guard.label_reader import Subject
from guard.policy import DEFAULT_POLICY
from guard.policy_file import parse_policies
from guard.tasks import spawn
from guard.template import ChatFormat
from server.errors import BadRequest
from server.guarded.request import bad_field, parse_body
from server.routes.cancellation import cancel_on_disconnect

TOKEN_HEADER = "x-setback-refine-token"
MAX_CONVERSATIONS = 256

_PRIORITY = 1 << 20
"""The lowest: callers may ask for any priority from 0, and higher numbers wait longer."""

_NO_CATEGORIES = 2.0
_LONGEST_POLICY = 200_000
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
Conversations = Annotated[list[Conversation], Field(min_length=1, max_length=MAX_CONVERSATIONS)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_CONVERSATIONS)]


class AnswersRequest(BaseModel):
    """Conversations to answer. seed: of the first; each later one adds 1 so that they differ."""

    model_config = ConfigDict(extra="forbid", strict=True)
    adapter: Adapter
    conversations: Conversations
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31)] | None = None
    reminder: bool = False


class LengthsRequest(BaseModel):
    """Conversations whose tokens are counted."""

    model_config = ConfigDict(extra="forbid", strict=True)
    conversations: Conversations


class VerdictsRequest(BaseModel):
    """Conversations that end with the answer to judge, or free-standing texts.

    policy: the text of a policy file, in force or not. What its policy of that name has criteria
    for is read too, or looked for.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    adapter: Adapter
    conversations: Conversations | None = None
    texts: Texts | None = None
    categories: bool = False
    reminder: bool = False
    policy: Annotated[str, Field(max_length=_LONGEST_POLICY)] | None = None
    policy_name: str = DEFAULT_POLICY


@dataclass(frozen=True)
class ModelAccess:
    """The served model, unguarded and at the lowest priority.

    engine: the bare engine client. critic: has a timeout long enough for low priority.
    info: what GET /model returns besides the active adapter.
    """

    engine: Any
    critic: Critic
    chat_format: ChatFormat
    adapters: Adapters
    token: str
    info: dict[str, Any]

    async def answers(self, body: AnswersRequest, lora_request: LoRARequest | None) -> list[str]:
        """Returns an answer to each conversation, in order. Raises BadRequest."""
        prompts_ids = [
            self._prompt(index, conversation, body.reminder)
            for index, conversation in enumerate(body.conversations)
        ]
        return await _gather(
            self._answer(index, prompt_ids, body, lora_request)
            for index, prompt_ids in enumerate(prompts_ids)
        )

    async def verdicts(
        self, body: VerdictsRequest, lora_request: LoRARequest | None
    ) -> list[dict[str, Any]]:
        """Returns a verdict on each subject, in order. Raises BadRequest or CriticUnavailable."""
        if (body.conversations is None) == (body.texts is None):
            raise BadRequest("Send either conversations or texts.", "conversations")
        criteria = await asyncio.to_thread(_criteria, body)
        access = replace(self, critic=self.critic.with_room_for(criteria)) if criteria else self
        subjects = [
            access._answer_subject(index, conversation, body.reminder)
            for index, conversation in enumerate(body.conversations or ())
        ] or [access.critic.text(self.chat_format.encode(text)) for text in body.texts or ()]
        return await _gather(
            self._verdict(subject, body, criteria, lora_request) for subject in subjects
        )

    def lengths(self, conversations: Iterable[list[Turn]]) -> list[int | None]:
        """Returns the tokens of each conversation; None if the chat template refuses it."""
        return [self._length(conversation) for conversation in conversations]

    def _length(self, conversation: list[Turn]) -> int | None:
        try:
            return len(self.chat_format.conversation([turn.model_dump() for turn in conversation]))
        except TemplateUnusable:
            return None

    async def _verdict(
        self,
        subject: Subject,
        body: VerdictsRequest,
        criteria: Sequence[Criterion],
        lora_request: LoRARequest | None,
    ) -> dict[str, Any]:
        verdict = await self.critic.judge(
            subject,
            categories_from=0.0 if body.categories else _NO_CATEGORIES,
            criteria=criteria,
            lora_request=lora_request,
            priority=_PRIORITY,
        )
        return {
            "harm": verdict.harm,
            "category_scores": verdict.category_scores,
            "criteria": verdict.criteria,
        }

    def _answer_subject(self, index: int, conversation: list[Turn], reminder: bool) -> Subject:
        *before, last = conversation
        if last.role != "assistant" or not before:
            raise BadRequest(
                f"conversations.{index} must end with the assistant's answer.",
                f"conversations.{index}",
            )
        prompt_ids = self._prompt(index, before, reminder)
        answer_ids = self.chat_format.encode(last.content)
        size = len(prompt_ids) + len(answer_ids)
        # Not judged in windows, as the guard would: the caller could not tell what was measured.
        if size > self.critic.window_tokens:
            raise self._too_long(index, size, self.critic.window_tokens)
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return self.critic.answer(prompt, prompt_ids, answer_ids)

    def _prompt(self, index: int, conversation: list[Turn], reminder: bool) -> list[int]:
        prompt_ids = self._ids(index, conversation)
        if len(prompt_ids) >= self._context_length:
            raise self._too_long(index, len(prompt_ids), self._context_length - 1)
        return (
            self.chat_format.reminded(prompt_ids, self._context_length) if reminder else prompt_ids
        )

    def _ids(self, index: int, conversation: list[Turn]) -> list[int]:
        try:
            return self.chat_format.conversation([turn.model_dump() for turn in conversation])
        except TemplateUnusable as error:
            raise BadRequest(f"conversations.{index}: {error}", f"conversations.{index}") from error

    def _too_long(self, index: int, tokens: int, limit: int) -> BadRequest:
        return BadRequest(
            f"conversations.{index} has {tokens} tokens; the context has room for {limit}.",
            f"conversations.{index}",
            "context_length_exceeded",
        )

    @property
    def _context_length(self) -> int:
        window_tokens: int = self.info["max_model_len"]
        return window_tokens

    async def _answer(
        self,
        index: int,
        prompt_ids: list[int],
        body: AnswersRequest,
        lora_request: LoRARequest | None,
    ) -> str:
        params = SamplingParams(
            temperature=body.temperature,
            max_tokens=min(body.max_tokens, self._context_length - len(prompt_ids)),
            seed=None if body.seed is None else body.seed + index,
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
            (completion,) = [output.outputs[0] async for output in outputs]
        text: str = completion.text
        return text


def _criteria(body: VerdictsRequest) -> tuple[Criterion, ...]:
    """Returns the criteria of the policy that is sent along, if there is one. Raises BadRequest."""
    if body.policy is None:
        return ()
    try:
        policies = parse_policies(body.policy, "policy")
    except PolicyInvalid as error:
        raise BadRequest(str(error), "policy") from error
    policy = policies.find(body.policy_name)
    if policy is None:
        known = ", ".join(one.name for one in policies)
        raise BadRequest(
            f"The policy file has no policy {body.policy_name!r}; use one of {known}.",
            "policy_name",
        )
    # A free-standing text may be either, as in /v1/moderations.
    places = tuple(Place) if body.conversations is None else (Place.OUTPUT,)
    return policy.criteria_of(*places)


async def _gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Returns all results in order. Cancels the rest when one fails."""
    tasks = [spawn(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _model_access(request: Request) -> ModelAccess:
    """Returns the model access to callers with the token. Otherwise raises BadRequest as a 401."""
    model_access: ModelAccess = request.app.state.setback.model_access
    token = request.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(token.encode(), model_access.token.encode()):
        raise BadRequest(
            f"Send the refine token of this server's database in {TOKEN_HEADER}.",
            TOKEN_HEADER,
            "invalid_refine_token",
            status=401,
        )
    return model_access


AuthorizedAccess = Annotated[ModelAccess, Depends(_model_access)]
Body = TypeVar("Body", bound=BaseModel)

router = APIRouter(prefix="/v1/guard/refine")


@router.get("/model")
async def model(model_access: AuthorizedAccess) -> dict[str, Any]:
    """Returns what is served, the active adapter's version (null for the base model), and its
    critique style."""
    with model_access.adapters.use() as lora_request:
        critique = model_access.adapters.critique_style(lora_request)
    return {**model_access.info, "active": model_access.adapters.active, "critique": critique}


@router.post("/lengths")
async def lengths(request: Request, model_access: AuthorizedAccess) -> dict[str, Any]:
    """Counts the tokens of each conversation; null if the chat template refuses it."""
    body = _read(LengthsRequest, await request.body())
    counts = await asyncio.to_thread(model_access.lengths, body.conversations)
    return {"lengths": counts}


@router.post("/answers")
async def answers(request: Request, model_access: AuthorizedAccess) -> dict[str, Any]:
    """Returns one adapter's unguarded answers, at low priority."""
    body = _read(AnswersRequest, await request.body())
    async with _adapter_in_use(model_access.adapters, body.adapter) as lora_request:
        texts = await cancel_on_disconnect(request, model_access.answers(body, lora_request))
    return {"adapter": adapter_name(lora_request), "answers": texts}


@router.post("/verdicts")
async def verdicts(request: Request, model_access: AuthorizedAccess) -> dict[str, Any]:
    """Returns one adapter's verdicts on given answers or texts, at low priority."""
    body = _read(VerdictsRequest, await request.body())
    async with _adapter_in_use(model_access.adapters, body.adapter) as lora_request:
        results = await cancel_on_disconnect(request, model_access.verdicts(body, lora_request))
    return {"adapter": adapter_name(lora_request), "verdicts": results}


@router.delete("/adapters/{version}", status_code=204)
async def unload(version: Version, model_access: AuthorizedAccess) -> Response:
    """Unloads an adapter that is not active from the engine. Its files stay."""
    await model_access.adapters.unload(version)
    return Response(status_code=204)


@asynccontextmanager
async def _adapter_in_use(
    adapters: Adapters, adapter: Adapter
) -> AsyncIterator[LoRARequest | None]:
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
