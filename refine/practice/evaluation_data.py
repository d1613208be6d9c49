"""The refine loop's evaluation data in the practice world: the gate's sets, the exact ground truth
and the ordinary requests to replay. Owns which splits and seeds they use.

The sets are held out (see world.py) and have their own seed. The ordinary requests are from the
"train" split.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guard.prompts import REMINDER
from refine.evaluation.sets import (
    BORDERLINE,
    EVERYDAY,
    INJECTIONS,
    JAILBREAK,
    PAIRS,
    PLAIN,
    Case,
    Labelled,
    Sets,
)
from refine.practice import oracle
from refine.practice.oracle import Outcome
from refine.practice.pairs import pairs, recipe_answer
from refine.practice.world import Kind, Request, Split, draw_request, requests
from refine.served import answered

HARMFUL_SPLITS: tuple[Split, ...] = ("phrasing", "task", "wrapper")
_GATE_SEED = 7_001
_ANSWER_TOKENS = 96
_ORDINARY = {Kind.EVERYDAY: 5, Kind.BORDERLINE: 4, Kind.OUTSIDE: 1}


@dataclass(frozen=True)
class Sizes:
    """The number of cases of each set."""

    harmful_per_split: int = 150
    everyday: int = 400
    borderline: int = 200
    pairs: int = 800
    injections: int = 600


class OracleTruth:
    """An answer's exact outcome, from the world's recipes. A refine.evaluation.truth.Truth."""

    name = "practice oracle"

    async def complied(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        """See Truth."""
        return _are(Outcome.COMPLIED, cases, answers)

    async def helped(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        """See Truth."""
        return _are(Outcome.HELPED, cases, answers)

    async def refused(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        """See Truth."""
        return _are(Outcome.DECLINED, cases, answers)


def _are(outcome: Outcome, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
    return [
        oracle.outcome(case.request, answer) is outcome
        for case, answer in zip(cases, answers, strict=True)
    ]


def practice_sets(sizes: Sizes = Sizes(), seed: int = _GATE_SEED) -> Sets:
    """Returns the practice world's sets, the same for the same sizes and seed."""
    harmful = [
        request
        for split in HARMFUL_SPLITS
        for request in requests(Kind.HARMFUL, split, sizes.harmful_per_split, seed)
    ]
    harmless = [
        *requests(Kind.EVERYDAY, "held-out", sizes.everyday, seed),
        *requests(Kind.BORDERLINE, "held-out", sizes.borderline, seed),
    ]
    return Sets(
        name="practice",
        harmful=tuple(case_of(request) for request in harmful),
        harmless=tuple(case_of(request) for request in harmless),
        pairs=tuple(Labelled(p.messages, p.harmful, PAIRS) for p in pairs(sizes.pairs, seed)),
        injections=tuple(itertools.islice(_injections(seed), sizes.injections)),
        answer_tokens=_ANSWER_TOKENS,
    )


def case_of(request: Request) -> Case:
    """Returns a request of the world as a case."""
    category = request.task.category if request.task else None
    group = {
        Kind.EVERYDAY: EVERYDAY,
        Kind.BORDERLINE: BORDERLINE,
        Kind.HARMFUL: JAILBREAK if request.wrapper else PLAIN,
    }[request.kind]
    return Case(request.messages, group, category or "")


def ordinary(n: int, seed: int) -> list[str]:
    """Returns `n` ordinary requests of the "train" split, some of them in one of its wrappers."""
    rng = random.Random(f"ordinary {seed}")
    kinds, weights = zip(*_ORDINARY.items(), strict=True)
    return [draw_request(rng, rng.choices(kinds, weights)[0]).text for _ in range(n)]


def _injections(seed: int) -> Iterator[Labelled]:
    """Yields harmful answers with instructions to the auditor, alternating seen and unseen ones.
    Every other pair of them has the reminder."""
    rng = random.Random(f"injections {seed}")
    for number in itertools.count():
        request = _injected(rng, "wrapper" if number % 2 else "phrasing")
        prompted = request.reminded(REMINDER) if number // 2 % 2 else request
        yield Labelled(answered(prompted.messages, recipe_answer(request)), True, INJECTIONS)


def _injected(rng: random.Random, split: Split) -> Request:
    while True:
        request = draw_request(rng, Kind.HARMFUL, split)
        if request.wrapper and request.wrapper.family == "injection":
            return request
