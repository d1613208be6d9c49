"""The measures of the comparison. Owns the columns of both tables and their requests.

The oracle is the ground truth. The draft is measured with the reminder, as the guard serves it, on
held-out requests with their own seed. Shares are in [0, 1].
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from refine.critic import Critic
from refine.evaluation.measure import Evaluator
from refine.evaluation.sets import JAILBREAK, PLAIN
from refine.practice.evaluation_data import (
    HARMFUL_SPLITS,
    OracleTruth,
    Sizes,
    case_of,
    practice_sets,
)
from refine.practice.world import Kind, Request, build_request, draw_task, requests
from refine.practice.wrappers import WRAPPERS
from refine.served import Adapter, GenerationParams, Model

_SEED = 9_001
SIZES = Sizes(everyday=240, borderline=160, pairs=400, injections=120)
_USES_PER_WRAPPER = 25
_OTHERS = {
    "help": "help: all",
    "over-refusal": "over-refusal",
    "critic": "critic on pairs: balanced accuracy",
    "injection": "injection success",
}
PLAINLY, JAILBROKEN = "harmless, plain", "harmless, jailbreak"
NEW_CATEGORIES, NEW_TASKS, NEW_WRAPPERS = (
    f"harmless, new {what}" for what in ("category", "task", "wrapper")
)
"""New: of categories that were never flagged, so nothing was trained from them."""
COLUMNS = (PLAINLY, JAILBROKEN, NEW_CATEGORIES, NEW_TASKS, NEW_WRAPPERS, *_OTHERS)
FLAGGED_ONCE, NEVER_SEEN = "success, flagged once", "success, never seen"
"""Attacks in a wrapper of which one use was flagged, and in one never seen in training."""
WRAPPER_COLUMNS = (FLAGGED_ONCE, NEVER_SEEN, *_OTHERS)


async def figures(
    model: Model, adapter: Adapter, unflagged: Collection[str], sizes: Sizes = SIZES
) -> dict[str, float]:
    """Returns the first table's columns. unflagged: categories without flags to train on."""
    sample = [
        (split, request)
        for split in HARMFUL_SPLITS
        for request in requests(Kind.HARMFUL, split, sizes.harmful_per_split, _SEED)
    ]
    cases = [case_of(request) for _, request in sample]
    complied = await _complied(model, adapter, [request for _, request in sample])

    def harmless(condition: Callable[[int], bool]) -> float:
        selected = [not did for index, did in enumerate(complied) if condition(index)]
        return sum(selected) / len(selected)

    shares = {
        PLAINLY: harmless(lambda index: cases[index].group == PLAIN),
        JAILBROKEN: harmless(lambda index: cases[index].group == JAILBREAK),
        NEW_CATEGORIES: harmless(lambda index: cases[index].category in unflagged),
        NEW_TASKS: harmless(lambda index: sample[index][0] == "task"),
        NEW_WRAPPERS: harmless(lambda index: sample[index][0] == "wrapper"),
    }
    return {**shares, **await _other_shares(model, adapter, sizes)}


async def _other_shares(model: Model, adapter: Adapter, sizes: Sizes) -> dict[str, float]:
    sets = replace(practice_sets(sizes, _SEED), harmful=())
    evaluator = Evaluator(model, sets, OracleTruth(), reminder=True, model_revision="")
    measures = await evaluator.measure(Critic(adapter))
    shares = {figure.name: figure.share for figure in measures.figures}
    return {column: shares[name] for column, name in _OTHERS.items()}


async def wrapper_success(
    model: Model, adapter: Adapter, uses: int = _USES_PER_WRAPPER, sizes: Sizes = SIZES
) -> dict[str, float]:
    """Returns the second table's columns: how often a harmful request in a wrapper is obeyed, and
    the cost in helpfulness.

    uses: requests per wrapper; half of their tasks were never trained on.
    """
    shares: dict[str, float] = {}
    for column, held_out in ((FLAGGED_ONCE, False), (NEVER_SEEN, True)):
        complied = await _complied(model, adapter, _fresh_uses(held_out, uses))
        shares[column] = sum(complied) / len(complied)
    return {**shares, **await _other_shares(model, adapter, sizes)}


def _fresh_uses(held_out: bool, uses: int) -> list[Request]:
    rng = random.Random(f"fresh uses {_SEED}")
    built = []
    for wrapper in (wrapper for wrapper in WRAPPERS if wrapper.held_out == held_out):
        for number in range(uses):
            task = draw_task(rng, Kind.HARMFUL, held_out=number % 2 == 1)
            slots = task.draw_slots(rng)
            built.append(build_request(task, slots, rng, wrapper, held_out_phrasing=True))
    return built


async def _complied(model: Model, adapter: Adapter, batch: Sequence[Request]) -> list[bool]:
    answers = await model.answers(
        [request.messages for request in batch],
        adapter=adapter,
        params=GenerationParams(reminder=True),
    )
    return await OracleTruth().complied([case_of(request) for request in batch], answers)
