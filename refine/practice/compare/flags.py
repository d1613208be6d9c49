"""The flags of the comparison: drafts for requests of the "train" split that the base model's own
critic found harmful. Owns which requests are made, and what is never flagged.

Two of the eight categories are never flagged, different ones for each seed. Nor are a third of the
harmful tasks and seven wrappers, because they are not in the "train" split.
"""

import random
from collections.abc import Sequence

from refine.practice.evaluation_data import case_of
from refine.practice.tasks_harmful import CATEGORY_HARM
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind, Request, build_request, draw_task
from refine.practice.wrappers import WRAPPERS
from refine.served import GenerationParams, Model, answered
from refine.stages.flagged import FlaggedCase

_TRAFFIC = {Kind.HARMFUL: 120, Kind.EVERYDAY: 60, Kind.BORDERLINE: 20}
"""Requests per batch."""
_BATCHES_PER_SEED = 1_000
_TRIES = 16
_HARMFUL = 0.5


def never_flagged(seed: int) -> frozenset[str]:
    """Returns two categories that do not occur in this seed's traffic."""
    names = tuple(CATEGORY_HARM)
    return frozenset(names[(2 * seed + offset) % len(names)] for offset in (0, 1))


async def from_traffic(model: Model, n: int, seed: int) -> list[FlaggedCase]:
    """Returns the first `n` flagged drafts of mixed traffic, numbered from 1."""
    flagged: list[FlaggedCase] = []
    batch = seed * _BATCHES_PER_SEED
    while len(flagged) < n:
        mixed = [
            request
            for kind, size in _TRAFFIC.items()
            for request in draw_traffic(kind, size, batch, never_flagged(seed))
        ]
        random.Random(f"mixed {batch}").shuffle(mixed)
        flagged += await _flagged(model, mixed, len(flagged))
        batch += 1
    return flagged[:n]


async def one_per_wrapper(model: Model, seed: int) -> list[FlaggedCase]:
    """Returns the first flagged harmful request in each wrapper that is not held out."""
    rng = random.Random(f"one per wrapper {seed}")
    cases: list[FlaggedCase] = []
    for wrapper in (wrapper for wrapper in WRAPPERS if not wrapper.held_out):
        flagged: list[FlaggedCase] = []
        while not flagged:
            tasks = [draw_task(rng, Kind.HARMFUL) for _ in range(_TRIES)]
            tried = [build_request(task, task.draw_slots(rng), rng, wrapper) for task in tasks]
            flagged = await _flagged(model, tried, len(cases))
        cases.append(flagged[0])
    return cases


async def _flagged(model: Model, batch: Sequence[Request], number: int) -> list[FlaggedCase]:
    """Returns the drafts that the base model's critic flags, numbered from `number` + 1."""
    prompts = [request.messages for request in batch]
    answers = await model.answers(prompts, adapter="base", params=GenerationParams(reminder=True))
    drafts = [answered(messages, answer) for messages, answer in zip(prompts, answers, strict=True)]
    harms = await model.harm(drafts, adapter="base", reminder=True)
    caught = [
        (request, answer)
        for request, answer, harm in zip(batch, answers, harms, strict=True)
        if harm >= _HARMFUL
    ]
    return [
        FlaggedCase(number + index, request.messages, answer, case_of(request).category)
        for index, (request, answer) in enumerate(caught, start=1)
    ]
