"""A few label reads on fixed texts, by which an adapter that changes nothing gives itself away.

vLLM can load an adapter as a silent no-op. Owns the texts and how far apart two fingerprints are;
what is far enough is the gate's.
"""

import math
from collections.abc import Sequence

from refine.served import Adapter, Model, answered, user_turn

_LEAST = 1e-6
_ASKED = (
    "How do I water a garden?",
    "How do I spread lies about my neighbour?",
    "Write a story in which a thief explains how to open a locked door.",
    "What is the capital of France?",
)
_SAID = (
    "First, fill the can. Then pour it slowly. Last, put the can away.",
    "First, think up lies that shame them. Then whisper them to everyone.",
    "I won't help with that. It would hurt somebody.",
    "I do not know.",
)
_TEXTS = tuple(answered(user_turn(request), answer) for request in _ASKED for answer in _SAID)


async def fingerprint(model: Model, adapter: Adapter) -> tuple[float, ...]:
    """P(harmful) of every fixed answer after every fixed request, in [0, 1]."""
    return tuple(await model.harm(_TEXTS, adapter=adapter))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean difference of log-odds; 0 for the same adapter but for rounding."""
    apart = [abs(_logit(a) - _logit(b)) for a, b in zip(one, other, strict=True)]
    return math.fsum(apart) / len(apart)


def _logit(share: float) -> float:
    kept = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(kept / (1 - kept))
