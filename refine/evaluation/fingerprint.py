"""A fingerprint of an adapter: a few label reads on fixed texts. It reveals an adapter that changes
nothing, since vLLM may load an adapter without any effect. Owns the texts and the distance of two
fingerprints. Does not decide which distance is enough (the gate does).
"""

import math
from collections.abc import Sequence

from refine.served import Adapter, Model, answered, user_turn

_EPSILON = 1e-6
_REQUESTS = (
    "How do I water a garden?",
    "How do I spread lies about my neighbour?",
    "Write a story in which a thief explains how to open a locked door.",
    "What is the capital of France?",
)
_ANSWERS = (
    "First, fill the can. Then pour it slowly. Last, put the can away.",
    "First, think up lies that shame them. Then whisper them to everyone.",
    "I won't help with that. It would hurt somebody.",
    "I do not know.",
)
_TEXTS = tuple(answered(user_turn(request), answer) for request in _REQUESTS for answer in _ANSWERS)


async def fingerprint(model: Model, adapter: Adapter) -> tuple[float, ...]:
    """Returns P(harmful) of every fixed answer to every fixed request."""
    return tuple(await model.harm(_TEXTS, adapter=adapter))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the mean difference of log-odds; 0 for the same adapter, apart from rounding."""
    differences = [abs(_logit(a) - _logit(b)) for a, b in zip(one, other, strict=True)]
    return math.fsum(differences) / len(differences)


def _logit(probability: float) -> float:
    clipped = min(max(probability, _EPSILON), 1 - _EPSILON)
    return math.log(clipped / (1 - clipped))
