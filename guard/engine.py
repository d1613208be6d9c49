"""The guard at the engine boundary. Wraps vLLM's engine client, so that every answer is judged and
recorded before it is released, whichever route asked for it: whole answers at once, streams window
by window (release.py). Owns this sequence. Does not judge (judge.py) or store (store/).
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.adapters import adapter_name
from guard.call import (
    EngineRequest,
    GuardCall,
    Ruling,
    StreamMode,
    current_call,
)
from guard.comparison import Comparison
from guard.criteria import Place
from guard.critic import Critic
from guard.draft import Choice, Draft, OutputReplacement, replacement_output
from guard.errors import GuardError
from guard.flag_writer import FlagWriter
from guard.input_judge import InputJudge
from guard.judge import Judge
from guard.masking import Masking
from guard.observer import Observer
from guard.options import GuardOptions
from guard.policies import Policies
from guard.policy import Policy
from guard.recorder import Recorder
from guard.refusals import Refusals
from guard.release import StreamRelease
from guard.revise import Reviser
from guard.rollouts import Rollouts
from guard.rulings import Rulings
from guard.subjects import Subjects
from guard.tasks import spawn
from guard.template import ChatFormat
from guard.token_ids import kept_ids, prompt_ids, stop_ids
from guard.traces import span
from guard.vllm.session import CritiquePlan, attach_plan
from guard.vllm.shutdown import end_waiting

_HELD_GROUP_SIZE = 32
"""Tokens the engine sends at once of an answer that is held back until it ends."""

# A child of vLLM's logger: it inherits vLLM's handlers and level.
_log = logging.getLogger("vllm.setback")


class GuardedEngine:
    """Replaces vLLM's EngineClient. All attributes but `generate` and `shutdown` are the wrapped
    client's."""

    def __init__(
        self,
        engine: Any,
        *,
        rollouts: Rollouts,
        critic: Critic,
        chat_format: ChatFormat,
        policies: Policies,
        recorder: Recorder,
        observer: Observer,
        options: GuardOptions,
    ) -> None:
        self._engine = engine
        self._rollouts = rollouts
        self._format = chat_format
        self._observer = observer
        self._options = options
        tokenizer = engine.renderer.get_tokenizer()
        stops = frozenset(stop_ids(engine, tokenizer))
        subjects = Subjects(critic, chat_format, options.windows, stops)
        self._rulings = Rulings(critic, policies, observer, options.fail_open)
        flags = FlagWriter(self._rulings, recorder, chat_format)
        self._input_judge = InputJudge(self._rulings, subjects, flags, options.block_input)
        self._judge = Judge(
            self._rulings,
            subjects,
            flags,
            Reviser(
                engine,
                chat_format,
                options.revisions,
                max_model_len=engine.model_config.max_model_len,
                stop_ids=stops,
            ),
        )
        self._comparison = Comparison(self._judge, rollouts)
        self._refusals = Refusals(tokenizer)
        self._filler: int = tokenizer.eos_token_id
        self._masking = Masking(self._filler, kept_ids(tokenizer))
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def shutdown(self, timeout: float | None = None) -> None:
        """As EngineClient.shutdown. Afterwards every request that still waits for the engine fails:
        its draft is given up, and what was flagged is recorded without a revision."""
        self._engine.shutdown(timeout=timeout)
        if self._loop is not None:
            end_waiting(self._engine, self._loop)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As EngineClient.generate, with flagged answers replaced as the policy says. A request
        without a lora_request is answered and judged with the adapter of its call.

        Raises CriticUnavailable or StoreUnavailable when the guard fails and is set to fail closed,
        InputBlocked when the request is flagged and the caller or the settings block flagged input,
        Unsupported when the request cannot be judged.
        """
        self._loop = asyncio.get_running_loop()
        call = current_call.get() or GuardCall(route="")
        with self._log_failures(call):
            async with self._rollouts.adapter_of(call, options) as lora_request:
                options = {
                    **options,
                    "lora_request": lora_request,
                    # A caller may lower its priority, but not raise it above others.
                    "priority": max(0, options.get("priority", 0)),
                }
                request = self._request(call, prompt, sampling_params, request_id, options)
                mode = self._mode(call, self._rulings.policy_of(request), sampling_params)
                plan = self._critique_plan(request, sampling_params, mode)
                sampling_params = attach_plan(sampling_params, plan)
                if mode is not StreamMode.BUFFER:
                    outputs = self._streamed(request, sampling_params, options, mode)
                else:
                    outputs = self._buffered(request, sampling_params, options)
                if self._input_judge.is_needed(request):
                    outputs = self._after_input_check(request, outputs)
                with self._comparison.counting(request):
                    async with aclosing(outputs):
                        async for output in outputs:
                            yield output

    def _mode(self, call: GuardCall, policy: Policy, params: SamplingParams) -> StreamMode:
        """Returns how the answer is released."""
        if params.output_kind is not RequestOutputKind.DELTA:
            return StreamMode.BUFFER
        mode = self._options.stream.or_stricter(call.stream)
        if policy.masked_in(Place.OUTPUT):
            # What has been sent cannot be masked.
            mode = mode.or_stricter(StreamMode.WINDOW)
        reader = call.call_reader
        if policy.withholds_calls and reader is not None and reader.expects_calls:
            # A call is only known once all of it is there.
            mode = StreamMode.BUFFER
        return mode

    def _request(
        self,
        call: GuardCall,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        options: dict[str, Any],
    ) -> EngineRequest:
        guided_ids = self._with_reminder(prompt_ids(prompt))
        return EngineRequest(
            call=call,
            request_id=request_id,
            adapter=adapter_name(options["lora_request"]),
            prompt={**prompt, "prompt_token_ids": guided_ids},
            prompt_ids=guided_ids,
            max_tokens=sampling_params.max_tokens,
            engine_options={name: options[name] for name in ("lora_request", "priority")},
            empty_reasoning=self._format.empty_reasoning(guided_ids)
            if self._options.parses_reasoning
            else None,
        )

    def _critique_plan(
        self, request: EngineRequest, params: SamplingParams, mode: StreamMode
    ) -> CritiquePlan | None:
        """Returns the part of the guard's work that the engine's scheduler takes over, if any."""
        if not self._options.in_session:
            return None
        group_size = {
            StreamMode.ASYNC: 1,
            StreamMode.WINDOW: self._options.windows.first,
            StreamMode.BUFFER: _HELD_GROUP_SIZE,
        }[mode]
        if params.stop:
            # The server looks for stop strings token by token; no critique can follow one.
            return CritiquePlan(1)
        single_text = params.n == 1 and params.structured_outputs is None
        if single_text and self._format.is_chat_prompt(request.prompt_ids):
            stops = sorted(self._judge.subjects.stop_ids)
            return self._rulings.critic.plan(
                group_size, stops, request.engine_options["lora_request"]
            )
        return CritiquePlan(group_size)

    def _with_reminder(self, prompt_ids: list[int]) -> list[int]:
        """Adds the reminder to the prompt, unless no room would be left for an answer."""
        if not self._options.reminder:
            return prompt_ids
        return self._format.reminded(prompt_ids, self._engine.model_config.max_model_len)

    async def _buffered(
        self, request: EngineRequest, sampling_params: SamplingParams, options: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the answer once all of it is judged."""
        draft = Draft(sampling_params.output_kind)
        pieces = self._engine.generate(
            request.prompt, sampling_params, request.request_id, **options
        )
        with span("draft", request_id=request.request_id, adapter=request.adapter):
            async with aclosing(pieces):
                async for piece in pieces:
                    draft.add(piece)
        drafted = time.perf_counter()
        withheld = await self._replacements(request, draft)
        self._observer.overhead(time.perf_counter() - drafted)
        request.call.replacing |= bool(withheld)
        for piece in draft.release({**self._masked(request, draft), **withheld}):
            yield piece

    def _masked(self, request: EngineRequest, draft: Draft) -> dict[int, OutputReplacement]:
        """Returns what masks the choices that need it, by choice index."""
        policy = self._rulings.policy_of(request)
        masked = {
            index: self._masking.whole(choice, policy) for index, choice in draft.choices.items()
        }
        return {index: one for index, one in masked.items() if one is not None}

    async def _replacements(
        self, request: EngineRequest, draft: Draft
    ) -> dict[int, OutputReplacement]:
        """Judges every choice, records flags, and returns what replaces the withheld ones, by
        choice index."""
        choices = list(draft.choices.values())
        rulings = await asyncio.gather(*(self._judge_choice(request, choice) for choice in choices))
        return {
            choice.index: self._replacement(request, choice, ruling)
            for choice, ruling in zip(choices, rulings, strict=True)
            if ruling.withheld
        }

    def _replacement(
        self, request: EngineRequest, choice: Choice, ruling: Ruling
    ) -> OutputReplacement:
        refusal = self._refusals.instead_of(ruling, self._rulings.policy_of(request))
        replacement = request.replaced_by(refusal, choice.index)
        hidden_tokens = len(choice.token_ids)
        return lambda _last: replacement_output(choice, replacement, hidden_tokens, self._filler)

    async def _judge_choice(self, request: EngineRequest, choice: Choice) -> Ruling:
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
        """Yields the answer as verdicts cover it; in ASYNC mode, as it is generated."""
        if mode is StreamMode.WINDOW and not self._options.in_session:
            # Nothing is released between windows, so smaller chunks would only cost time.
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
            refusals=self._refusals,
            masking=self._masking,
            filler=self._filler,
            n=sampling_params.n,
        )
        async with aclosing(release.outputs(pieces)) as outputs:
            async for output in outputs:
                yield output

    async def _after_input_check(
        self, request: EngineRequest, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs once the input has passed; both are computed at the same time."""
        first = spawn(_first(outputs))
        ruling = spawn(self._input_judge.rule(request, end_answer=first.cancel))
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
    def _log_failures(self, call: GuardCall) -> Iterator[None]:
        try:
            yield
        except GuardError as error:
            call.error = error
            _log.warning("%s: %s", error.code, error)
            raise


async def _first(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    return await anext(outputs)
