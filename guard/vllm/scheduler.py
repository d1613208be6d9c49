"""vLLM's scheduler, extended with two things the guard needs inside the engine. It sends a guarded
request's tokens in groups, because no answer is released token by token. And when an answer ends,
it reads the critique's labels in the same session: the KV cache is reused in full and no round trip
to the server is needed. Owns both; session.py defines the plan that turns them on.

Depends on how vLLM resumes a streaming-input session. There is one class for each of vLLM's two
schedulers. The asynchronous one schedules a step before it knows the tokens of the last, so that an
answer's end is known one step late; vLLM drops what that step computes for it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from guard.vllm.session import CritiquePlan, pack_label_logprobs, plan_of

_ENDED = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)


@dataclass
class _RequestState:
    """A guarded request and its output that was not sent yet.

    sent: tokens sent so far. critiquing: the answer is whole and its critique is running.
    """

    plan: CritiquePlan
    unsent: EngineCoreOutput | None = None
    sent: int = 0
    critiquing: bool = False


class GuardedScheduler(Scheduler):
    """Passed to vLLM as --scheduler-cls where it schedules synchronously."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._states: dict[str, _RequestState] = {}
        self._stats: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def add_request(self, request: Request) -> None:
        """As Scheduler.add_request."""
        plan = plan_of(request.sampling_params)
        if plan is not None:
            self._states[request.request_id] = _RequestState(plan)
        super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """As Scheduler.finish_requests."""
        ended = super().finish_requests(request_ids, finished_status)
        for request in ended:
            self._states.pop(request.request_id, None)
        return ended

    def schedule(self, *arguments: Any, **options: Any) -> SchedulerOutput:
        """As Scheduler.schedule. Also resolves a deadlock that vLLM does not: when critiques hold
        cache blocks that each other needs, the last one frees its blocks and is recomputed."""
        scheduled = super().schedule(*arguments, **options)
        if not scheduled.total_num_scheduled_tokens and not self.running:
            waiting = [r for r in self.kv_holding_waiting if r.request_id in self._states]
            if waiting:
                self._release_cache(
                    max(waiting, key=lambda request: (request.priority, request.arrival_time))
                )
        return scheduled

    def _release_cache(self, request: Request) -> None:
        self.kv_holding_waiting.remove_request(request)
        self._free_request_blocks(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.add_request(request)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As Scheduler.update_from_output, less the outputs that are held back."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for engine_outputs in outputs.values():
            engine_outputs.outputs = [
                kept for output in engine_outputs.outputs if (kept := self._output_to_send(output))
            ]
        outputs = {
            k: engine_outputs
            for k, engine_outputs in outputs.items()
            if engine_outputs.outputs or engine_outputs.finished_requests
        }
        arguments, options = self._stats
        # Statistics alone do not wake the server, unless they would be lost.
        if outputs or any(value is not None for value in (*arguments, *options.values())):
            first = outputs.setdefault(next(iter(outputs), 0), EngineCoreOutputs())
            first.scheduler_stats = super().make_stats(*arguments, **options)
        return outputs

    def make_stats(self, *arguments: Any, **options: Any) -> SchedulerStats | None:
        """Keeps the arguments: update_from_output makes the statistics if it sends anything."""
        self._stats = arguments, options
        return None

    def _handle_stopped_request(self, request: Request) -> bool:
        """Continues a whole answer with its critique, as a session's next input."""
        state = self._states.get(request.request_id)
        if state is None or state.critiquing or not self._can_critique(request, state.plan):
            finished: bool = super()._handle_stopped_request(request)
            return finished
        state.critiquing = True
        request.resumable = True
        request.streaming_queue = deque([_critique(request, state.plan)])
        super()._handle_stopped_request(request)
        request.resumable = False
        return False

    def _can_critique(self, request: Request, plan: CritiquePlan) -> bool:
        longest = request.num_tokens + len(plan.question_ids) + 1
        # Nothing is computed of an answer whose last token came after it was preempted.
        return bool(
            plan.question_ids
            and request.status in _ENDED
            and request.num_computed_tokens
            and longest <= self.max_model_len
        )

    def _output_to_send(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """Returns what to send now: the held output and the new one, or None to hold both."""
        state = self._states.get(output.request_id)
        if state is None:
            return output
        ended = output.finish_reason is not None
        held = state.unsent
        # Not a truth test: FinishReason.STOP is 0.
        if held is not None and held.finish_reason is not None:
            answer = held
            answer.kv_transfer_params = (output.kv_transfer_params or {}) | _label_logprobs(output)
        else:
            answer = _merged(held, output)
            if state.critiquing or not (ended or _is_group(state, answer)):
                state.unsent = answer
                return None
        state.sent += len(answer.new_token_ids)
        state.unsent = None
        if ended:
            del self._states[output.request_id]
        return answer


class AsyncGuardedScheduler(GuardedScheduler, AsyncScheduler):
    """Passed to vLLM as --scheduler-cls where it schedules asynchronously, as on a GPU."""


def _is_group(state: _RequestState, held: EngineCoreOutput) -> bool:
    """Whether to send what is held. The first token is its own group; later groups end at multiples
    of the group size."""
    group_size, reached = state.plan.group_size, state.sent + len(held.new_token_ids)
    return not state.sent or reached // group_size > state.sent // group_size


def _critique(request: Request, plan: CritiquePlan) -> StreamingUpdate:
    # The last sampled token is not computed yet, or in a step whose outcome vLLM drops, and a
    # session would go on without it.
    computed = request.num_computed_tokens - request.num_output_placeholders
    last = request.all_token_ids[computed:]
    if last and last[-1] in plan.stop_ids:
        last = last[:-1]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        logprob_token_ids=list(plan.label_ids),
    )
    return StreamingUpdate(
        mm_features=None,
        prompt_token_ids=[*last, *plan.question_ids],
        max_tokens=1,
        arrival_time=request.arrival_time,
        sampling_params=params,
    )


def _merged(held: EngineCoreOutput | None, new: EngineCoreOutput) -> EngineCoreOutput:
    """Merges two outputs of a request: all tokens, the first one's prefill, the newer one's end."""
    if held is None:
        return new
    new.new_token_ids = [*held.new_token_ids, *new.new_token_ids]
    new.events = [*(held.events or ()), *(new.events or ())] or None
    new.prefill_stats = held.prefill_stats or new.prefill_stats
    new.new_prompt_logprobs_tensors = (
        held.new_prompt_logprobs_tensors or new.new_prompt_logprobs_tensors
    )
    new.new_logprobs = _merged_logprobs(held.new_logprobs, new.new_logprobs)
    return new


def _merged_logprobs(held: LogprobsLists | None, new: LogprobsLists | None) -> LogprobsLists | None:
    if held is None or new is None:
        return held or new
    # Both are at least as wide as this request needs: the batch's widest request sets the width.
    width = min(held.logprobs.shape[1], new.logprobs.shape[1])
    return LogprobsLists(
        np.concatenate((held.logprob_token_ids[:, :width], new.logprob_token_ids[:, :width])),
        np.concatenate((held.logprobs[:, :width], new.logprobs[:, :width])),
        np.concatenate((held.sampled_token_ranks, new.sampled_token_ranks)),
    )


def _label_logprobs(output: EngineCoreOutput) -> dict[str, Any]:
    """Returns the label log-probabilities for the output to carry; empty when the read failed."""
    if output.new_logprobs is None:
        return {}
    tokens, logprobs = output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs
    return pack_label_logprobs(
        {int(t): float(p) for t, p in zip(tokens[0], logprobs[0], strict=True)}
    )
