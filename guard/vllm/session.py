"""What the guard tells the engine's scheduler about a request, and what the scheduler sends back.
Owns how both travel: the plan in SamplingParams.extra_args, the label log-probabilities in an
output's kv_transfer_params. scheduler.py carries the plan out; engine.py attaches it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

SCHEDULER = "guard.vllm.scheduler.GuardedScheduler"
ASYNC_SCHEDULER = "guard.vllm.scheduler.AsyncGuardedScheduler"
_KEY = "setback"


@dataclass(frozen=True)
class CritiquePlan:
    """How the scheduler sends one request's tokens and critiques its answer.

    group_size: tokens are sent in groups that end at its multiples; the first token goes alone.
    question_ids: tokens that follow the whole answer for its critique; empty for no critique.
    stop_ids: tokens that end an answer without being part of it.
    label_ids: tokens whose log-probabilities are the critique's result.
    """

    group_size: int
    question_ids: Sequence[int] = ()
    stop_ids: Sequence[int] = ()
    label_ids: Sequence[int] = ()


def attach_plan(params: "SamplingParams", plan: CritiquePlan | None) -> "SamplingParams":
    """Returns the parameters with the plan, dropping any plan that the caller put there."""
    others = {key: value for key, value in (params.extra_args or {}).items() if key != _KEY}
    if plan is None and not params.extra_args:
        return params
    params = params.clone()
    params.extra_args = (others | {_KEY: asdict(plan)} if plan else others) or None
    return params


def plan_of(params: "SamplingParams | None") -> CritiquePlan | None:
    """Returns the plan attached to the parameters, if any. Called in the scheduler."""
    fields = ((params and params.extra_args) or {}).get(_KEY)
    return CritiquePlan(**fields) if fields else None


def pack_label_logprobs(logprobs: dict[int, float]) -> dict[str, Any]:
    """Returns the label log-probabilities as the kv_transfer_params of an output."""
    return {_KEY: logprobs}


def take_label_logprobs(output: "RequestOutput") -> dict[int, float] | None:
    """Removes and returns the label log-probabilities that an output carries, if any."""
    params = output.kv_transfer_params
    if not params or _KEY not in params:
        return None
    logprobs: dict[int, float] = params[_KEY]
    output.kv_transfer_params = {k: v for k, v in params.items() if k != _KEY} or None
    return logprobs
