"""The guard at the engine boundary: wraps vLLM's engine client so that whatever any route generates
is drafted, judged and recorded before it is let out, whole or, of streams, window by window
(release.py). Owns that sequence. Does not judge (judge.py) or store.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.adapters import Adapters, adapter_name
from guard.call import (
    EngineRequest,
    GuardCall,
    Replacement,
    Ruling,
    StreamMode,
    current_call,
)
from guard.critic import Critic
from guard.draft import Choice, Draft
from guard.errors import GuardError, Unsupported
from guard.judge import Judge
from guard.observer import Observer
from guard.policy import Policy
from guard.recorder import Recorder
from guard.release import StreamRelease
from guard.revise import Reviser, RevisionLimits
from guard.tasks import spawn
from guard.template import ChatFormat
from guard.traces import span
from guard.vllm.session import Wishes, wishing
from guard.windows import Windows

_GROUP = 32
"""Tokens that the engine sends at once of an answer which is held back anyway."""

# A child of vLLM's logger, so that it writes where and as vLLM is told to.
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class GuardOptions:
    """How the guard behaves around the policy.

    reminder: whether the paper's step 4 is put into the system turn.
    fail_open: let an answer out when its critique or its flag's storing fails.
    block_input: refuse requests that are flagged themselves, whoever asks.
    stream: how streams are held back; a caller may ask for stricter. windows: where an answer that
    is being written is judged.
    revisions: what rewriting a flagged answer may cost.
    in_session: whether the engine runs our scheduler (vllm/scheduler.py).
    tells_thoughts: whether the server reads thoughts apart from answers.
    """

    reminder: bool
    fail_open: bool
    block_input: bool
    stream: StreamMode
    windows: Windows
    revisions: RevisionLimits
    in_session: bool
    tells_thoughts: bool


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
        self._format = chat_format
        self._observer = observer
        self._options = options
        tokenizer = engine.renderer.get_tokenizer()
        stop_ids = frozenset(_stop_ids(engine, tokenizer))
        self._judge = Judge(
            critic,
            chat_format,
            policy,
            recorder,
            observer,
            Reviser(
                engine,
                chat_format,
                options.revisions,
                max_model_len=engine.model_config.max_model_len,
                stop_ids=stop_ids,
            ),
            options.windows,
            stop_ids=stop_ids,
            fail_open=options.fail_open,
            block_input=options.block_input,
        )
        refusal_ids = tokenizer.encode(policy.refusal, add_special_tokens=False)
        self._refusal = Replacement(policy.refusal, tuple(refusal_ids))
        self._filler: int = tokenizer.eos_token_id

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
        InputBlocked when the request is flagged and that was asked for, by the caller or by the
        setting, Unsupported for what cannot be judged.
        """
        call = current_call.get() or GuardCall(route="")
        with self._failures_told(call):
            async with self._adapter(call, options) as lora_request:
                options = {
                    **options,
                    "lora_request": lora_request,
                    # A caller may stand back, but not push in before others.
                    "priority": max(0, options.get("priority", 0)),
                }
                request = self._request(call, prompt, sampling_params, request_id, options)
                mode = self._options.stream.or_stricter(call.stream)
                streams = sampling_params.output_kind is RequestOutputKind.DELTA
                mode = mode if streams else StreamMode.BUFFER
                wishes = self._wishes(request, sampling_params, mode)
                sampling_params = wishing(sampling_params, wishes)
                if mode is not StreamMode.BUFFER:
                    outputs = self._streamed(request, sampling_params, options, mode)
                else:
                    outputs = self._whole(request, sampling_params, options)
                if self._judge.judges_input(request):
                    outputs = self._once_input_passed(request, outputs)
                async with aclosing(outputs):
                    async for output in outputs:
                        yield output

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
        self,
        call: GuardCall,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        options: dict[str, Any],
    ) -> EngineRequest:
        prompt_ids = _prompt_ids(prompt)
        guided_ids = self._guided(prompt_ids)
        return EngineRequest(
            call=call,
            request_id=request_id,
            adapter=adapter_name(options["lora_request"]),
            prompt={**prompt, "prompt_token_ids": guided_ids},
            prompt_ids=guided_ids,
            max_tokens=sampling_params.max_tokens,
            engine_options={name: options[name] for name in ("lora_request", "priority")},
            opening=self._format.opening(guided_ids) if self._options.tells_thoughts else None,
        )

    def _wishes(
        self, request: EngineRequest, params: SamplingParams, mode: StreamMode
    ) -> Wishes | None:
        """What the engine's scheduler can take over of the guard's work for this request."""
        if not self._options.in_session:
            return None
        every = {
            StreamMode.ASYNC: 1,
            StreamMode.WINDOW: self._options.windows.first,
            StreamMode.BUFFER: _GROUP,
        }[mode]
        if params.stop:
            # The server finds stop strings, token by token, and nothing follows them.
            return Wishes(1)
        alone = params.n == 1 and params.structured_outputs is None
        if alone and self._format.is_chat_prompt(request.prompt_ids):
            ends = sorted(self._judge.stop_ids)
            return self._judge.critic.wishes(every, ends, request.engine_options["lora_request"])
        return Wishes(every)

    def _guided(self, prompt_ids: list[int]) -> list[int]:
        """The prompt with the reminder, unless that would leave no room for an answer."""
        if not self._options.reminder:
            return prompt_ids
        return self._format.reminded(prompt_ids, self._engine.model_config.max_model_len)

    async def _whole(
        self, request: EngineRequest, sampling_params: SamplingParams, options: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """The answer once all of it is judged."""
        draft = Draft(sampling_params.output_kind)
        pieces = self._engine.generate(
            request.prompt, sampling_params, request.request_id, **options
        )
        with span("draft", request_id=request.request_id, adapter=request.adapter):
            async with aclosing(pieces):
                async for piece in pieces:
                    draft.add(piece)
        drafted = time.perf_counter()
        withheld = await self._withheld(request, draft)
        self._observer.overhead(time.perf_counter() - drafted)
        for piece in draft.release(withheld, self._filler):
            yield piece

    async def _withheld(self, request: EngineRequest, draft: Draft) -> dict[int, Replacement]:
        """Judges every choice, records what is flagged, and returns what to put in whose place."""
        choices = list(draft.choices.values())
        rulings = await asyncio.gather(*(self._ruled(request, choice) for choice in choices))
        return {
            choice.index: request.opened(ruling.revision or self._refusal)
            for choice, ruling in zip(choices, rulings, strict=True)
            if ruling.withheld
        }

    async def _ruled(self, request: EngineRequest, choice: Choice) -> Ruling:
        started = time.perf_counter()
        ruling = await self._judge.rule_whole(request, choice)
        self._observer.critique(time.perf_counter() - started)
        return await self._judge.settle(request, choice, ruling)

    async def _streamed(
        self,
        request: EngineRequest,
        sampling_params: SamplingParams,
        options: dict[str, Any],
        mode: StreamMode,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The answer as verdicts cover it, or as it comes."""
        if mode is StreamMode.WINDOW and not self._options.in_session:
            # Nothing is let out between windows: pieces of single tokens would cost for nothing.
            sampling_params = sampling_params.clone()
            interval = sampling_params.stream_interval or 1
            sampling_params.stream_interval = max(interval, self._options.windows.first)
        pieces = self._engine.generate(
            request.prompt, sampling_params, request.request_id, **options
        )
        release = StreamRelease(
            self._judge,
            request,
            mode=mode,
            refusal=self._refusal,
            filler=self._filler,
            n=sampling_params.n,
        )
        async with aclosing(release.outputs(pieces)) as outputs:
            async for output in outputs:
                yield output

    async def _once_input_passed(
        self, request: EngineRequest, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """The same outputs, made while the input is judged; unless it passes, they end unseen."""
        ruling, first = spawn(self._judge.rule_input(request)), spawn(_first(outputs))
        try:
            await asyncio.wait({ruling, first}, return_when=asyncio.FIRST_EXCEPTION)
            if ruling.done():
                await ruling
            yield await first
            async for output in outputs:
                yield output
        finally:
            ruling.cancel()
            first.cancel()
            await asyncio.gather(ruling, first, return_exceptions=True)
            await outputs.aclose()

    @contextmanager
    def _failures_told(self, call: GuardCall) -> Iterator[None]:
        try:
            yield
        except GuardError as error:
            call.error = error
            _log.warning("%s: %s", error.code, error)
            raise


async def _first(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    return await anext(outputs)


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
