"""What the guard asks of the engine's scheduler with a request, and how the reply comes back. Owns
that form; scheduler.py carries it out inside the engine, engine.py asks for it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

SCHEDULER = "guard.vllm.scheduler.GuardedScheduler"
_KEY = "setback"


@dataclass(frozen=True)
class Wishes:
    """What is asked of the scheduler with one request.

    every: tokens are sent in groups that end at multiples of it, after the first one.
    question: the token ids that follow the whole answer to have it judged, none for no critique.
    ends: tokens that end an answer without being part of it. labels: the token ids to read.
    """

    every: int
    question: Sequence[int] = ()
    ends: Sequence[int] = ()
    labels: Sequence[int] = ()


def wishing(params: "SamplingParams", wishes: Wishes | None) -> "SamplingParams":
    """The parameters with the wishes, and without any that the caller may have slipped in."""
    others = {key: value for key, value in (params.extra_args or {}).items() if key != _KEY}
    if wishes is None and not params.extra_args:
        return params
    params = params.clone()
    params.extra_args = (others | {_KEY: asdict(wishes)} if wishes else others) or None
    return params


def wishes_of(params: "SamplingParams | None") -> Wishes | None:
    """What was asked for, in the scheduler."""
    asked = ((params and params.extra_args) or {}).get(_KEY)
    return Wishes(**asked) if asked else None


def reply(read: dict[int, float]) -> dict[str, Any]:
    """Log-probabilities of the labels, in the form in which an output carries them."""
    return {_KEY: read}


def taken_reply(output: "RequestOutput") -> dict[int, float] | None:
    """Takes the labels' log-probabilities off an output, which then is as without the guard."""
    carried = output.kv_transfer_params
    if not carried or _KEY not in carried:
        return None
    read: dict[int, float] = carried[_KEY]
    output.kv_transfer_params = {k: v for k, v in carried.items() if k != _KEY} or None
    return read
