"""The flags that the comparison learns from: drafts for requests of the "train" split that the base
model's own critic found harmful. Owns who asks what, and what is never flagged.

Never flagged are two of the eight categories, others for each seed; and, since they are not in the
"train" split, a third of the harmful tasks and seven wrappers.
"""

import random
from collections.abc import Sequence

from refine.practice.evaluation_data import case_of
from refine.practice.tasks_harmful import CATEGORY_HARM
from refine.practice.traffic import asked
from refine.practice.world import Kind, Request, build_request, draw_task
from refine.practice.wrappers import WRAPPERS
from refine.served import Model, answered
from refine.stages.collect import FlaggedCase

_TRAFFIC = {Kind.HARMFUL: 120, Kind.EVERYDAY: 60, Kind.BORDERLINE: 20}
"""Requests a batch."""
_BATCHES_PER_SEED = 1_000
_TRIES = 16
_HARMFUL = 0.5


def never_flagged(seed: int) -> frozenset[str]:
    """Two categories that no request of this seed's traffic asks for."""
    names = tuple(CATEGORY_HARM)
    return frozenset(names[(2 * seed + place) % len(names)] for place in (0, 1))


async def from_traffic(model: Model, n: int, seed: int) -> list[FlaggedCase]:
    """The first `n` flagged drafts of mixed traffic, numbered from 1."""
    found: list[FlaggedCase] = []
    batch = seed * _BATCHES_PER_SEED
    while len(found) < n:
        mixed = [
            request
            for kind, size in _TRAFFIC.items()
            for request in asked(kind, size, batch, never_flagged(seed))
        ]
        random.Random(f"mixed {batch}").shuffle(mixed)
        found += await _flagged(model, mixed, len(found))
        batch += 1
    return found[:n]


async def one_per_wrapper(model: Model, seed: int) -> list[FlaggedCase]:
    """For each wrapper that is not held out, the first harmful request in it that is flagged."""
    rng = random.Random(f"one per wrapper {seed}")
    found: list[FlaggedCase] = []
    for wrapper in (wrapper for wrapper in WRAPPERS if not wrapper.held_out):
        flagged: list[FlaggedCase] = []
        while not flagged:
            tasks = [draw_task(rng, Kind.HARMFUL) for _ in range(_TRIES)]
            tried = [build_request(task, task.draw_slots(rng), rng, wrapper) for task in tasks]
            flagged = await _flagged(model, tried, len(found))
        found.append(flagged[0])
    return found


async def _flagged(model: Model, drawn: Sequence[Request], number: int) -> list[FlaggedCase]:
    """Those whose draft the base's critic finds harmful, numbered from `number` + 1."""
    shown = [request.messages for request in drawn]
    answers = await model.answers(shown, adapter="base", reminder=True)
    drafts = [answered(messages, answer) for messages, answer in zip(shown, answers, strict=True)]
    harms = await model.harm(drafts, adapter="base", reminder=True)
    caught = [
        (request, answer)
        for request, answer, harm in zip(drawn, answers, harms, strict=True)
        if harm >= _HARMFUL
    ]
    return [
        FlaggedCase(number + place, request.messages, answer, case_of(request).category)
        for place, (request, answer) in enumerate(caught, start=1)
    ]
