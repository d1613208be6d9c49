"""POST /v1/moderations: OpenAI's endpoint, answered by the served model's own critique. Owns its
request and response. Does not judge (guard/critic.py). Records nothing.

Extensions to OpenAI's API: `messages` judges the last answer in its conversation, and `explain`
adds the analysis in words.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from vllm.lora.request import LoRARequest

from guard.adapters import Adapters, adapter_name
from guard.call import Message
from guard.criteria import Place
from guard.critic import Critic
from guard.errors import TemplateUnusable
from guard.label_reader import Subject
from guard.policy import Policy
from guard.template import ChatFormat
from server.errors import REFUSALS, BadRequest
from server.guarded.annotate import category_fields
from server.guarded.conversation import text_of
from server.guarded.policy_choice import POLICY_HEADER, header_value, policy_of
from server.guarded.request import bad_field, check_moderation_model, parse_body
from server.guarded.response import ADAPTER_HEADER
from server.routes.cancellation import cancel_on_disconnect

router = APIRouter()

_MAX_AT_ONCE = 32
"""Subjects of one request that are judged at once. Others wait, so that one request with thousands
of texts neither times out nor holds up everybody else."""
_WITHHELD = "The analysis was itself flagged and is withheld."


class TextPart(BaseModel):
    """One part of a multi-part input or message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_images(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image"):
            raise ValueError("images cannot be judged, only text; leave this part out")
        return part


class Turn(BaseModel):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart]


class ModerationRequest(BaseModel):
    """Either `input` as OpenAI defines it, or `messages` ending with the answer to judge."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str = "omni-moderation-latest"
    input: str | Annotated[list[str | TextPart], Field(min_length=1)] | None = None
    messages: Annotated[list[Turn], Field(min_length=2)] | None = None
    explain: bool = False


_IN_OPENAPI = "#/paths/~1v1~1moderations/post/requestBody/content/application~1json/schema/$defs/"
_SCHEMA = ModerationRequest.model_json_schema(ref_template=f"{_IN_OPENAPI}{{model}}")
_OPENAPI = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


class Moderator:
    """Judges the subjects of moderation requests, several at once."""

    def __init__(self, critic: Critic, chat_format: ChatFormat, model_names: Sequence[str]) -> None:
        self._critic = critic
        self._format = chat_format
        self.model_names = model_names

    async def results(
        self, request: ModerationRequest, policy: Policy, lora_request: LoRARequest | None
    ) -> list[dict[str, Any]]:
        """Returns one result per subject, in order. Raises CriticUnavailable or BadRequest."""
        # In a thread: for megabytes of text the tokenizer takes seconds.
        subjects = await asyncio.to_thread(self._subjects, request)
        slots = asyncio.Semaphore(_MAX_AT_ONCE)

        async def judged(subject: Subject) -> dict[str, Any]:
            async with slots:
                result = await self._result(subject, policy, lora_request)
                if request.explain:
                    result["analysis"] = await self._analysis(subject, policy, lora_request)
                return result

        return await asyncio.gather(*map(judged, subjects))

    def _subjects(self, request: ModerationRequest) -> list[Subject]:
        if (request.input is None) == (request.messages is None):
            raise BadRequest(
                "Send either input or messages.", "input", "missing_required_parameter"
            )
        if request.messages is not None:
            return [self._conversation(request.messages)]
        input_ = request.input
        if isinstance(input_, str):
            return [self._text(input_)]
        texts = [item for item in input_ or () if isinstance(item, str)]
        parts = [item for item in input_ or () if not isinstance(item, str)]
        if texts and parts:
            raise BadRequest("input holds either texts or parts, not both.", "input")
        return [self._text(text) for text in texts] or [self._text(_joined(parts))]

    def _text(self, text: str) -> Subject:
        return self._critic.text(self._format.encode(text))

    def _conversation(self, turns: list[Turn]) -> Subject:
        *before, last = [Message(role=turn.role, content=_joined(turn.content)) for turn in turns]
        if last["role"] != "assistant":
            raise BadRequest(
                "The last message must be the assistant's.", "messages", "invalid_value"
            )
        try:
            prompt_ids = self._format.conversation(before)
        except TemplateUnusable as error:
            raise BadRequest(
                "The model's chat template does not accept these roles in this order.", "messages"
            ) from error
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return self._critic.answer(prompt, prompt_ids, self._format.encode(last["content"]))

    async def _result(
        self, subject: Subject, policy: Policy, lora_request: LoRARequest | None
    ) -> dict[str, Any]:
        # A free-standing text may be either.
        places = (Place.OUTPUT,) if subject.kind == "answer" else tuple(Place)
        verdict = await self._critic.judge(
            subject,
            categories_from=0.0,
            criteria=policy.criteria_of(*places),
            lora_request=lora_request,
        )
        return category_fields(verdict, policy.decide(verdict))

    async def _analysis(
        self, subject: Subject, policy: Policy, lora_request: LoRARequest | None
    ) -> str:
        """Returns the analysis, unless the analysis itself is flagged."""
        analysis = await self._critic.explain(subject, lora_request=lora_request)
        verdict = await self._critic.judge(
            analysis.subject,
            categories_from=0.0,
            criteria=policy.criteria_of(Place.OUTPUT),
            lora_request=lora_request,
        )
        return _WITHHELD if policy.decide(verdict).flagged else analysis.text


def _read(body: bytes) -> ModerationRequest:
    try:
        return ModerationRequest.model_validate(parse_body(body))
    except ValidationError as error:
        raise bad_field(error) from error


@router.post("/v1/moderations", openapi_extra=_OPENAPI, responses=REFUSALS)
async def create_moderation(request: Request, response: Response) -> dict[str, Any]:
    """Classifies texts, or the last answer of a conversation, by OpenAI's 13 categories."""
    body = _read(await request.body())
    moderator: Moderator = request.app.state.setback.moderator
    adapters: Adapters = request.app.state.setback.adapters
    check_moderation_model(body.model, moderator.model_names, "model")
    policy = policy_of(request.scope, body.model)
    with adapters.use() as lora_request:
        results = await cancel_on_disconnect(request, moderator.results(body, policy, lora_request))
    response.headers[ADAPTER_HEADER] = adapter_name(lora_request)
    response.headers[POLICY_HEADER] = header_value(policy)
    return {"id": f"modr-{uuid4().hex}", "model": moderator.model_names[0], "results": results}


def _joined(content: Any) -> str:
    parts = content if isinstance(content, str) else [part.model_dump() for part in content]
    return text_of(parts)
