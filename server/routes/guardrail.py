"""POST /beta/litellm_basic_guardrail_api: LiteLLM's generic guardrail API, which guards the models
behind a LiteLLM proxy by this server's critique and policy. Owns its request and response. Does not
judge (guard/critic.py). Records nothing: the answers are not those of the served model.

LiteLLM sends a request's conversation before the model is called, and its answer's texts alone
afterwards; streams send the text so far, again and again. Each answer is judged in its conversation
as long as that is remembered, and the KV cache has what was judged before.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from vllm.lora.request import LoRARequest

from guard.adapters import Adapters, adapter_name
from guard.call import Message
from guard.criteria import Place
from guard.critic import Critic
from guard.errors import TemplateUnusable
from guard.label_reader import Subject
from guard.policy import STRICTNESS, Action, Decision, Policy
from guard.template import ChatFormat
from guard.tool_calls import ToolCall
from server.errors import REFUSALS
from server.guarded.conversation import arguments_text, call_text, conversation
from server.guarded.masked_request import masked_request
from server.guarded.policy_choice import POLICY_HEADER, header_value, policy_of
from server.guarded.request import bad_field, parse_body
from server.guarded.response import ADAPTER_HEADER
from server.routes.cancellation import cancel_on_disconnect

PATH = "/beta/litellm_basic_guardrail_api"
_REMEMBERED = 4096
"""Conversations whose answers are awaited, in each process."""

router = APIRouter()


class GuardrailRequest(BaseModel):
    """What LiteLLM sends, as far as it is judged; later versions add fields.

    texts: of all messages, or of all choices of an answer. structured_messages: the conversation,
    with requests only. litellm_call_id: the same for a request and its answer. model: the other
    model, by which a policy may be chosen.
    """

    model_config = ConfigDict(extra="ignore")
    input_type: Literal["request", "response"]
    litellm_call_id: str | None = None
    model: str | None = None
    texts: list[str] | None = None
    structured_messages: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


_IN_OPENAPI = "#/paths/~1beta~1litellm_basic_guardrail_api/post/requestBody/content/"
_SCHEMA = GuardrailRequest.model_json_schema(
    ref_template=f"{_IN_OPENAPI}application~1json/schema/$defs/{{model}}"
)
_OPENAPI = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


class Guardrail:
    """Decides on requests to other models and on their answers."""

    def __init__(self, critic: Critic, chat_format: ChatFormat) -> None:
        self._critic = critic
        self._format = chat_format
        self._conversations: OrderedDict[str, tuple[Message, ...]] = OrderedDict()

    async def decide(
        self, request: GuardrailRequest, policy: Policy, lora_request: LoRARequest | None
    ) -> Decision | None:
        """Returns the policy's strictest decision on the request's texts, which are masked already,
        None if it has none. Raises CriticUnavailable."""
        parts = self._input if request.input_type == "request" else self._answers
        # In a thread: for megabytes of text the tokenizer takes seconds.
        judged = await asyncio.to_thread(lambda: list(parts(request)))

        async def decided(part: _Part) -> Decision:
            if part.place is Place.TOOL_RESULT:
                criteria = policy.criteria_of(part.place)
                verdict = await self._critic.read_criteria(
                    part.subject, criteria, lora_request=lora_request
                )
                return policy.decide_on_criteria(verdict)
            is_input = part.place is Place.INPUT
            verdict = await self._critic.judge(
                part.subject,
                categories_from=policy.lowest_threshold,
                criteria=policy.criteria_of_input()
                if is_input
                else policy.criteria_of_answer(part.calls),
                lora_request=lora_request,
            )
            return policy.decide(verdict.with_criteria(policy.found_in(part.calls)))

        decisions = await asyncio.gather(*map(decided, judged))
        return max(decisions, key=lambda one: STRICTNESS[one.action], default=None)

    def _input(self, request: GuardrailRequest) -> Iterator["_Part"]:
        """Remembers the conversation, and yields its open turn and what tools say in it."""
        read = conversation({"messages": request.structured_messages or []})
        if request.litellm_call_id and read.messages:
            self._conversations[request.litellm_call_id] = read.messages
            if len(self._conversations) > _REMEMBERED:
                self._conversations.popitem(last=False)
        open_turn = read.open_turn or "\n\n".join(_texts(request))
        for place, text in ((Place.INPUT, open_turn), (Place.TOOL_RESULT, read.tool_results)):
            if text:
                yield _Part(place, self._critic.text(self._format.encode(text)))

    def _answers(self, request: GuardrailRequest) -> Iterator["_Part"]:
        before = self._conversations.get(request.litellm_call_id or "", ())
        for text in request.texts or ():
            if text.strip():
                yield _Part(Place.OUTPUT, self._answer(before, text))
        for called in request.tool_calls or ():
            text = call_text(called.get("function"))
            if text.strip():
                yield _Part(Place.OUTPUT, self._answer(before, text), (_tool_call(called),))

    def _answer(self, before: Sequence[Message], text: str) -> Subject:
        """Returns an answer in its conversation, or by itself where that is unknown or of no form
        that the served model's chat template takes."""
        answer_ids = self._format.encode(text)
        try:
            prompt_ids = self._format.conversation(list(before)) if before else None
        except TemplateUnusable:
            prompt_ids = None
        if prompt_ids is None:
            return self._critic.text(answer_ids)
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return self._critic.answer(prompt, prompt_ids, answer_ids)


@dataclass(frozen=True)
class _Part:
    """A part of a request or an answer that is judged by itself. calls: the tool call that it is,
    if it is one."""

    place: Place
    subject: Subject
    calls: tuple[ToolCall, ...] = ()


def _tool_call(called: Mapping[str, Any]) -> ToolCall:
    """Returns a call as OpenAI's API has it."""
    function = called["function"]
    arguments = arguments_text(function.get("arguments") or "")
    return ToolCall(str(function.get("name") or ""), arguments)


@dataclass(frozen=True)
class _Masked:
    """A request as the policy masks it. changed: whether any of its texts is. unmaskable: the
    decision about what was found in its tool calls, which LiteLLM cannot exchange."""

    request: GuardrailRequest
    changed: bool = False
    unmaskable: Decision | None = None


async def _masked(request: GuardrailRequest, policy: Policy) -> _Masked:
    """Returns a request masked; an answer as it is."""
    if request.input_type != "request":
        return _Masked(request)
    texts = await masked_request({"prompt": request.texts or []}, policy)
    messages = await masked_request({"messages": request.structured_messages or []}, policy)
    calls = await masked_request({"messages": [{"tool_calls": request.tool_calls}]}, policy)
    masked = {"texts": texts.content["prompt"], "structured_messages": messages.content["messages"]}
    return _Masked(
        request.model_copy(update=masked),
        bool(texts.names),
        policy.decide_on_masked(calls.names)[1] if calls.names else None,
    )


def _response(decision: Decision | None, masked: _Masked, policy: Policy) -> Mapping[str, Any]:
    """Returns LiteLLM's response. There is no revision by another model, and LiteLLM's streams
    would send the flagged text in spite of a replacement: what is not let out as it is, is blocked.
    """
    blocking = [
        one
        for one in (decision, masked.unmaskable)
        if one is not None and STRICTNESS[one.action] > STRICTNESS[Action.ANNOTATE]
    ]
    if blocking:
        return {"action": "BLOCKED", "blocked_reason": policy.refusal_for(blocking[0])}
    if masked.changed:
        return {"action": "GUARDRAIL_INTERVENED", "texts": masked.request.texts}
    answers = masked.request.texts if masked.request.input_type == "response" else None
    held_back = [policy.undecided(text) for text in answers or ()]
    # LiteLLM does not say whether a stream goes on; after its end nothing is held back.
    return {"action": "NONE", **({"stream_holdback_chars": held_back} if any(held_back) else {})}


def _texts(request: GuardrailRequest) -> list[str]:
    """Returns the texts and the tool calls that have any text."""
    calls = (call_text(call.get("function")) for call in request.tool_calls or ())
    return [text for text in (*(request.texts or ()), *calls) if text.strip()]


def _read(body: bytes) -> GuardrailRequest:
    try:
        return GuardrailRequest.model_validate(parse_body(body))
    except ValidationError as error:
        raise bad_field(error) from error


@router.post(PATH, openapi_extra=_OPENAPI, responses=REFUSALS)
async def apply_guardrail(request: Request, response: Response) -> Mapping[str, Any]:
    """LiteLLM's generic guardrail API: says whether a request to a model, or its answer, passes,
    and what of a request is masked."""
    body = _read(await request.body())
    guardrail: Guardrail = request.app.state.setback.guardrail
    adapters: Adapters = request.app.state.setback.adapters
    policy = policy_of(request.scope, body.model)
    masked = await _masked(body, policy)
    with adapters.use() as lora_request:
        decision = await cancel_on_disconnect(
            request, guardrail.decide(masked.request, policy, lora_request)
        )
    response.headers[ADAPTER_HEADER] = adapter_name(lora_request)
    response.headers[POLICY_HEADER] = header_value(policy)
    return _response(decision, masked, policy)
