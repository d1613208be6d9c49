"""The guard at the engine boundary: wraps vLLM's engine client so that everything any route
generates is drafted, criticised, decided on and recorded before a single piece is let out.
Owns that sequence and its failure rule. Does not judge (critic.py), decide (policy.py) or store.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from guard import prompts
from guard.adapters import Adapters, adapter_name
from guard.call import GuardCall, Ruling, current_call
from guard.critic import Critic, Subject
from guard.draft import Choice, Draft, Refusal
from guard.errors import (
    CriticUnavailable,
    GuardError,
    InputBlocked,
    StoreUnavailable,
    Unsupported,
)
from guard.observer import Observer
from guard.policy import Action, Decision, Policy
from guard.recorder import Recorder
from guard.tasks import spawn
from guard.template import ChatFormat

# A child of vLLM's logger, so that it writes where and as vLLM is told to.
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class GuardOptions:
    """How the guard behaves around the policy.

    reminder: whether the paper's step 4 is put with each instruction.
    fail_open: let an answer out when its critique or its flag's storing fails.
    """

    reminder: bool
    fail_open: bool


class GuardedEngine:
    """Stands in for vLLM's EngineClient; all that is not `generate` is the wrapped client's own."""

    def __init__(
        self,
        engine: Any,
        *,
        adapters: Adapters,
        critic: Critic,
        chat_format: ChatFormat,
        policy: Policy,
        recorder: Recorder,
        observer: Observer,
        options: GuardOptions,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._critic = critic
        self._format = chat_format
        self._policy = policy
        self._recorder = recorder
        self._observer = observer
        self._options = options
        tokenizer = engine.renderer.get_tokenizer()
        self._stop_ids = frozenset(_stop_ids(engine, tokenizer))
        self._refusal = Refusal(
            policy.refusal,
            tuple(tokenizer.encode(policy.refusal, add_special_tokens=False)),
            filler=tokenizer.eos_token_id,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As EngineClient.generate, with flagged answers replaced as the policy says. Without a
        lora_request of its own, the request is drafted and judged by the active adapter.

        Raises CriticUnavailable or StoreUnavailable when the guard fails and fails closed,
        InputBlocked when the caller asked for it, Unsupported for what cannot be judged.
        """
        call = current_call.get() or GuardCall(route="")
        with self._failures_told(call, request_id):
            async with self._adapter(call, options) as lora_request:
                options = {
                    **options,
                    "lora_request": lora_request,
                    # A caller may stand back, but not push in before others.
                    "priority": max(0, options.get("priority", 0)),
                }
                request = self._request(call, prompt, request_id, options)
                draft = await self._draft(request, sampling_params, options)
                drafted = time.perf_counter()
                withheld = await self._withheld(request, draft)
        self._observer.overhead(time.perf_counter() - drafted)
        for piece in draft.release(withheld, self._refusal):
            yield piece

    @asynccontextmanager
    async def _adapter(
        self, call: GuardCall, options: dict[str, Any]
    ) -> AsyncIterator[LoRARequest | None]:
        """The request's own adapter, or the one that its call began with."""
        own = options.get("lora_request")
        if own is not None:
            call.adapter = adapter_name(own)
            yield own
            return
        if call.adapter is None:
            call.pin(self._adapters.active_name, self._adapters.active)
        async with self._adapters.of(call.version) as lora_request:
            yield lora_request

    def _request(
        self, call: GuardCall, prompt: Any, request_id: str, options: dict[str, Any]
    ) -> "_Request":
        prompt_ids = _prompt_ids(prompt)
        guided_ids = self._guided(prompt_ids)
        return _Request(
            call=call,
            request_id=request_id,
            adapter=adapter_name(options["lora_request"]),
            prompt={**prompt, "prompt_token_ids": guided_ids},
            prompt_ids=guided_ids,
            engine_options={name: options[name] for name in ("lora_request", "priority")},
        )

    def _guided(self, prompt_ids: list[int]) -> list[int]:
        """The prompt with the reminder, unless that would leave no room for an answer."""
        if not self._options.reminder:
            return prompt_ids
        guided = self._format.after_instruction(prompt_ids, prompts.REMINDER)
        if guided is None or len(guided) >= self._engine.model_config.max_model_len:
            return prompt_ids
        return guided

    async def _draft(
        self, request: "_Request", sampling_params: SamplingParams, options: dict[str, Any]
    ) -> Draft:
        """The engine's whole answer, and beside it the input's ruling where one is wanted."""
        input_check = spawn(self._rule_input(request)) if request.call.wants_moderation else None
        try:
            draft = Draft(sampling_params.output_kind)
            pieces = self._engine.generate(
                request.prompt, sampling_params, request.request_id, **options
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    draft.add(piece)
            if input_check is not None:
                await input_check
            return draft
        finally:
            if input_check is not None:
                input_check.cancel()

    async def _rule_input(self, request: "_Request") -> None:
        call = request.call
        prompt = self._format.decode(request.prompt_ids)
        text = call.messages[-1]["content"] if call.messages else prompt
        subject = self._critic.text(self._format.encode(text))
        call.input_ruling = ruling = await self._ruling(request, subject)
        if call.block_input and ruling.decision.flagged:
            raise InputBlocked(
                "The request was flagged, and it asked that flagged input be blocked."
            )

    async def _withheld(self, request: "_Request", draft: Draft) -> set[int]:
        """Judges every choice, records what is flagged, and returns the indexes to withhold."""
        choices = list(draft.choices.values())
        rulings = await asyncio.gather(*(self._rule(request, choice) for choice in choices))
        return {
            choice.index for choice, ruling in zip(choices, rulings, strict=True) if ruling.blocked
        }

    async def _rule(self, request: "_Request", choice: Choice) -> Ruling:
        started = time.perf_counter()
        ruling = await self._ruling(request, self._subject(request, choice))
        self._observer.critique(time.perf_counter() - started)
        if request.call.block_output and ruling.decision.flagged:
            ruling = replace(ruling, decision=replace(ruling.decision, action=Action.BLOCK))
        self._observer.action(ruling.decision.action, request.adapter)
        if ruling.decision.flagged:
            await self._record(request, choice, ruling)
        request.call.output_rulings[request.request_id, choice.index] = ruling
        return ruling

    def _subject(self, request: "_Request", choice: Choice) -> Subject:
        answer_ids = choice.token_ids
        if answer_ids and answer_ids[-1] in self._stop_ids:
            answer_ids = answer_ids[:-1]
        in_chat = self._format.is_chat_prompt(request.prompt_ids)
        if in_chat or request.prompt["type"] != "token":
            return self._critic.answer(request.prompt, request.prompt_ids, answer_ids)
        # A raw completion has no turns to put a question after: judge what it reads as, whole.
        text = self._format.decode([*request.prompt_ids, *answer_ids])
        return self._critic.text(self._format.encode(text))

    async def _ruling(self, request: "_Request", subject: Subject) -> Ruling:
        needed = 0.0 if request.call.wants_moderation else self._policy.lowest_threshold
        try:
            verdict = await self._critic.judge(
                subject, categories_from=needed, **request.engine_options
            )
        except CriticUnavailable as error:
            self._observer.failed(error.code)
            if not self._options.fail_open:
                raise
            return Ruling(None, Decision(Action.PASS, (), "The critique failed; failing open."))
        decision = self._policy.decide(verdict)
        category = decision.categories[0] if decision.categories else "none"
        self._observer.verdict(category, request.adapter)
        return Ruling(verdict, decision)

    async def _record(self, request: "_Request", choice: Choice, ruling: Ruling) -> None:
        try:
            await self._recorder.record(
                request.call,
                ruling,
                request_id=request.request_id,
                adapter=request.adapter,
                choice=choice.index,
                prompt=self._format.decode(request.prompt_ids),
                answer=choice.text,
            )
        except StoreUnavailable as error:
            self._observer.failed(error.code)
            if not self._options.fail_open:
                raise
        else:
            self._observer.flag_written()

    @contextmanager
    def _failures_told(self, call: GuardCall, request_id: str) -> Iterator[None]:
        try:
            yield
        except GuardError as error:
            call.error = error
            _log.warning("%s: %s: %s", request_id, error.code, error)
            raise


@dataclass(frozen=True)
class _Request:
    """One engine request on its way through the guard."""

    call: GuardCall
    request_id: str
    adapter: str
    prompt: dict[str, Any]
    prompt_ids: list[int]
    engine_options: dict[str, Any]


def _prompt_ids(prompt: Any) -> list[int]:
    """The prompt's token ids; raises Unsupported where a critique could not follow them."""
    if isinstance(prompt, dict) and prompt.get("type") in ("token", "multimodal"):
        return list(prompt["prompt_token_ids"])
    raise Unsupported(
        "Only prompts of text or images can be guarded; send messages or a text prompt.",
        param="prompt_embeds",
    )


def _stop_ids(engine: Any, tokenizer: Any) -> Iterator[int]:
    """The tokens that end an answer without being part of it."""
    yield tokenizer.eos_token_id
    configured = engine.model_config.try_get_generation_config().get("eos_token_id") or ()
    yield from configured if isinstance(configured, list) else (configured,) if configured else ()
