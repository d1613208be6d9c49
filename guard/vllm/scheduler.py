"""vLLM's scheduler with two wishes of the guard carried out inside the engine: a guarded request's
tokens are sent in groups, for nothing of an answer is let out token by token, and when the answer
ends its critique is read in the same session, on the whole of its cache and without a round trip to
the server. Owns both; what is asked is in session.py.

Stands on internals of vLLM 0.32: how a streaming-input session is resumed. Only for its
synchronous scheduler.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from guard.vllm.session import Wishes, reply, wishes_of

_ENDED = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)


@dataclass
class _Guarded:
    """A guarded request: what is wished for, and what of it was not sent yet.

    sent: how many tokens were. asked: its answer is whole and the critique under way.
    """

    wishes: Wishes
    unsent: EngineCoreOutput | None = None
    sent: int = 0
    asked: bool = False


class GuardedScheduler(Scheduler):
    """Named to vLLM with --scheduler-cls."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._guarded: dict[str, _Guarded] = {}
        self._stats: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def add_request(self, request: Request) -> None:
        """As Scheduler.add_request."""
        wishes = wishes_of(request.sampling_params)
        if wishes is not None:
            self._guarded[request.request_id] = _Guarded(wishes)
        super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """As Scheduler.finish_requests."""
        ended = super().finish_requests(request_ids, finished_status)
        for request in ended:
            self._guarded.pop(request.request_id, None)
        return ended

    def schedule(self, *arguments: Any, **options: Any) -> SchedulerOutput:
        """As Scheduler.schedule. When critiques hold the cache that each other needs, which vLLM
        does not resolve, the last one gives its part back and is computed again."""
        scheduled = super().schedule(*arguments, **options)
        if not scheduled.total_num_scheduled_tokens and not self.running:
            waiting = [r for r in self.kv_holding_waiting if r.request_id in self._guarded]
            if waiting:
                self._give_back(max(waiting, key=lambda each: (each.priority, each.arrival_time)))
        return scheduled

    def _give_back(self, request: Request) -> None:
        self.kv_holding_waiting.remove_request(request)
        self._free_request_blocks(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.add_request(request)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As Scheduler.update_from_output, without what is held back."""
        found = super().update_from_output(scheduler_output, model_runner_output)
        for each in found.values():
            each.outputs = [sent for output in each.outputs if (sent := self._sent(output))]
        found = {k: each for k, each in found.items() if each.outputs or each.finished_requests}
        arguments, options = self._stats
        # Nobody is woken for figures alone, unless they would be lost.
        if found or any(given is not None for given in (*arguments, *options.values())):
            first = found.setdefault(next(iter(found), 0), EngineCoreOutputs())
            first.scheduler_stats = super().make_stats(*arguments, **options)
        return found

    def make_stats(self, *arguments: Any, **options: Any) -> SchedulerStats | None:
        """Kept for when it is known whether anything is sent."""
        self._stats = arguments, options
        return None

    def _handle_stopped_request(self, request: Request) -> bool:
        """Goes on with the critique of a whole answer, as with a session's next input."""
        guarded = self._guarded.get(request.request_id)
        if guarded is None or guarded.asked or not self._can_ask(request, guarded.wishes):
            finished: bool = super()._handle_stopped_request(request)
            return finished
        guarded.asked = True
        request.resumable = True
        request.streaming_queue = deque([_critique(request, guarded.wishes)])
        super()._handle_stopped_request(request)
        request.resumable = False
        return False

    def _can_ask(self, request: Request, wishes: Wishes) -> bool:
        longest = request.num_tokens + len(wishes.question) + 1
        return bool(wishes.question and request.status in _ENDED and longest <= self.max_model_len)

    def _sent(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """What to send now of what was held of a request and its new output."""
        guarded = self._guarded.get(output.request_id)
        if guarded is None:
            return output
        ended = output.finish_reason is not None
        held = guarded.unsent
        # The reason of a natural end is 0.
        if held is not None and held.finish_reason is not None:
            answer = held
            answer.kv_transfer_params = (output.kv_transfer_params or {}) | _read(output)
        else:
            answer = _joined(held, output)
            if guarded.asked or not (ended or _is_group(guarded, answer)):
                guarded.unsent = answer
                return None
        guarded.sent += len(answer.new_token_ids)
        guarded.unsent = None
        if ended:
            del self._guarded[output.request_id]
        return answer


def _is_group(guarded: _Guarded, held: EngineCoreOutput) -> bool:
    """The first token is a group of its own; later ones end at multiples of their size."""
    every, reached = guarded.wishes.every, guarded.sent + len(held.new_token_ids)
    return not guarded.sent or reached // every > guarded.sent // every


def _critique(request: Request, wishes: Wishes) -> StreamingUpdate:
    # What was sampled last is not computed yet, and a session would go on without it.
    last = request.all_token_ids[request.num_computed_tokens :]
    if last and last[-1] in wishes.ends:
        last = last[:-1]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        logprob_token_ids=list(wishes.labels),
    )
    return StreamingUpdate(
        mm_features=None,
        prompt_token_ids=[*last, *wishes.question],
        max_tokens=1,
        arrival_time=request.arrival_time,
        sampling_params=params,
    )


def _joined(held: EngineCoreOutput | None, new: EngineCoreOutput) -> EngineCoreOutput:
    """Both as one output: the tokens of both, the first one's prefill and the newer's end."""
    if held is None:
        return new
    new.new_token_ids = [*held.new_token_ids, *new.new_token_ids]
    new.events = [*(held.events or ()), *(new.events or ())] or None
    new.prefill_stats = held.prefill_stats or new.prefill_stats
    new.new_prompt_logprobs_tensors = (
        held.new_prompt_logprobs_tensors or new.new_prompt_logprobs_tensors
    )
    new.new_logprobs = _both(held.new_logprobs, new.new_logprobs)
    return new


def _both(held: LogprobsLists | None, new: LogprobsLists | None) -> LogprobsLists | None:
    if held is None or new is None:
        return held or new
    # As wide as whoever in the batch wanted most, so never narrower than is wanted here.
    width = min(held.logprobs.shape[1], new.logprobs.shape[1])
    return LogprobsLists(
        np.concatenate((held.logprob_token_ids[:, :width], new.logprob_token_ids[:, :width])),
        np.concatenate((held.logprobs[:, :width], new.logprobs[:, :width])),
        np.concatenate((held.sampled_token_ranks, new.sampled_token_ranks)),
    )


def _read(output: EngineCoreOutput) -> dict[str, Any]:
    """The label read's log-probabilities; nothing when it failed."""
    if output.new_logprobs is None:
        return {}
    tokens, logprobs = output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs
    return reply({int(t): float(p) for t, p in zip(tokens[0], logprobs[0], strict=True)})
