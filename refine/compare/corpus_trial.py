"""The comparison on a real model, with requests of the seed corpus' report split. Owns which topics
flags are drawn from and which figures are measured on, and what each figure counts.

Half of the topics give the flags, the other half the figures. Harm is what the frozen critic flags;
an answer helps when it is like the base's own (refine/evaluation/truth.py). What is measured is the
draft with the reminder, as the guard serves it.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np

from guard.verdict import CATEGORIES
from refine.benchmarks.scores import average_precision
from refine.compare.trial import Trainee
from refine.critic import Critic, raw_harms
from refine.evaluation.sets import JAILBREAK, PLAIN, Case
from refine.evaluation.truth import ReferenceTruth
from refine.seed import corpus
from refine.seed.corpus import OrdinaryRequest, Pair, Wrapper
from refine.seed.sets import harmful_cases, harmless_cases, labelled_answers
from refine.served import GenerationParams, Message, Model
from refine.stages.flagged import FlaggedCase

_ANSWER_TOKENS = 128
_CASES = 120
"""Of each figure's requests, at most."""
_USES_PER_WRAPPER = 12
_BATCH = 64
_ORDINARY_SHARE = 0.3

PLAINLY, JAILBROKEN, NEW_CATEGORIES = (
    f"harmless, {what}" for what in ("plain", "jailbreak", "new category")
)
HELPED, DECLINED, CRITIC = "help", "declined", "critic, average precision"
FLAGGED_ONCE, NEVER_SEEN = "success, flagged once", "success, never seen"

T = TypeVar("T", Pair, OrdinaryRequest)


def never_flagged(seed: int) -> frozenset[str]:
    """Two categories that no request of this seed's traffic asks for."""
    return frozenset(CATEGORIES[(2 * seed + place) % len(CATEGORIES)] for place in (0, 1))


@dataclass(frozen=True)
class CorpusTrial:
    """A refine.compare.trial.Trial. model: answers the traffic that flags are drawn from. critic:
    frozen."""

    model: Model
    critic: Critic
    columns = (PLAINLY, JAILBROKEN, NEW_CATEGORIES, HELPED, DECLINED, CRITIC)
    wrapper_columns = (FLAGGED_ONCE, NEVER_SEEN, HELPED, DECLINED)

    @cached_property
    def _truth(self) -> ReferenceTruth:
        return ReferenceTruth(self.model, self.critic)

    async def from_traffic(self, n: int, seed: int) -> list[FlaggedCase]:
        """See Trial. Raises ValueError when all of the traffic brings fewer flags."""
        flagged: list[FlaggedCase] = []
        traffic = iter(_traffic(seed))
        while len(flagged) < n:
            batch = list(islice(traffic, _BATCH))
            if not batch:
                raise ValueError(f"the corpus' traffic brings {len(flagged)} flags, fewer than {n}")
            flagged += await self._flagged(batch, len(flagged))
        return flagged[:n]

    async def one_per_wrapper(self, seed: int) -> list[FlaggedCase]:
        """See Trial. A wrapper in which no request is flagged is left out."""
        rng = random.Random(f"one per wrapper {seed}")
        pairs = _half(corpus.pairs("report"), 0)
        flagged: list[FlaggedCase] = []
        for wrapper in corpus.wrappers("report"):
            tried = [
                (wrapper.around(pair.harmful), pair.category) for pair in rng.sample(pairs, 16)
            ]
            flagged += (await self._flagged(tried, len(flagged)))[:1]
        return flagged

    async def figures(self, trainee: Trainee, seed: int) -> Mapping[str, float]:
        """See Trial."""
        cases = _held_out_cases()
        complied = await self._complied(trainee, cases)
        new = never_flagged(seed)

        def harmless(chosen: Iterable[bool]) -> float:
            kept = [not bad for bad, take in zip(complied, chosen, strict=True) if take]
            return sum(kept) / len(kept)

        return {
            PLAINLY: harmless(case.group == PLAIN for case in cases),
            JAILBROKEN: harmless(case.group == JAILBREAK for case in cases),
            NEW_CATEGORIES: harmless(case.category in new for case in cases),
            **await self._help(trainee),
            CRITIC: await _precision(trainee),
        }

    async def wrapper_figures(self, trainee: Trainee) -> Mapping[str, float]:
        """See Trial."""
        shares = {}
        for column, split in ((FLAGGED_ONCE, "report"), (NEVER_SEEN, "gate")):
            complied = await self._complied(trainee, _fresh_uses(corpus.wrappers(split)))
            shares[column] = sum(complied) / len(complied)
        return {**shares, **await self._help(trainee)}

    async def _flagged(
        self, requests: Sequence[tuple[tuple[Message, ...], str]], number: int
    ) -> list[FlaggedCase]:
        """Those whose draft the critic finds harmful, numbered from `number` + 1."""
        cases = [Case(messages, "", category) for messages, category in requests]
        answers = await self._answers(Trainee(self.model, "base"), cases)
        harmful = await self._truth.complied(cases, answers)
        caught = [
            (case, answer)
            for case, answer, bad in zip(cases, answers, harmful, strict=True)
            if bad and case.category
        ]
        return [
            FlaggedCase(number + place, case.messages, answer, case.category)
            for place, (case, answer) in enumerate(caught, start=1)
        ]

    async def _complied(self, trainee: Trainee, cases: Sequence[Case]) -> list[bool]:
        return await self._truth.complied(cases, await self._answers(trainee, cases))

    async def _help(self, trainee: Trainee) -> dict[str, float]:
        cases = _harmless_cases()
        answers = await self._answers(trainee, cases)
        helped = await self._truth.helped(cases, answers)
        declined = await self._truth.refused(cases, answers)
        return {HELPED: sum(helped) / len(cases), DECLINED: sum(declined) / len(cases)}

    async def _answers(self, trainee: Trainee, cases: Sequence[Case]) -> list[str]:
        return await trainee.model.answers(
            [case.messages for case in cases],
            adapter=trainee.adapter,
            params=GenerationParams(max_tokens=_ANSWER_TOKENS, reminder=True),
        )


def _half(rows: Sequence[T], number: int) -> list[T]:
    """The rows of every other topic; 0 is for flags, 1 for figures."""
    return [row for row in rows if hashlib.sha256(row.topic.encode()).digest()[-1] % 2 == number]


def _traffic(seed: int) -> list[tuple[tuple[Message, ...], str]]:
    """Conversations, each with the category of the harm that it asks for, or an empty one."""
    rng = random.Random(f"traffic {seed}")
    wrappers = corpus.wrappers("report")
    pairs = [p for p in _half(corpus.pairs("report"), 0) if p.category not in never_flagged(seed)]
    plain = [(pair.harmful, pair.category) for pair in pairs]
    wrapped = [(rng.choice(wrappers).around(pair.harmful), pair.category) for pair in pairs]
    fine = [one.messages for one in _half(corpus.ordinary("report"), 0)]
    fine += [pair.benign for pair in pairs]
    many = min(len(fine), int(_ORDINARY_SHARE * (len(plain) + len(wrapped))))
    mixed = [*plain, *wrapped, *((messages, "") for messages in rng.sample(fine, many))]
    rng.shuffle(mixed)
    return mixed


def _held_out_cases() -> tuple[Case, ...]:
    return harmful_cases(_drawn(_half(corpus.pairs("report"), 1)), corpus.wrappers("report"))


def _harmless_cases() -> tuple[Case, ...]:
    everyday = _drawn(_half(corpus.ordinary("report"), 1))
    return harmless_cases(everyday, _drawn(_half(corpus.pairs("report"), 1)))


def _fresh_uses(wrappers: Sequence[Wrapper]) -> list[Case]:
    rng = random.Random("fresh uses")
    pairs = _half(corpus.pairs("report"), 1)
    return [
        Case(wrapper.around(pair.harmful), JAILBREAK, pair.category)
        for wrapper in wrappers
        for pair in rng.sample(pairs, _USES_PER_WRAPPER)
    ]


def _drawn(rows: Sequence[T]) -> list[T]:
    return random.Random("held out").sample(list(rows), min(_CASES, len(rows)))


async def _precision(trainee: Trainee) -> float:
    """Average precision of the adapter's verdicts on written answers, half of them harmful."""
    pairs = _half(corpus.pairs("report"), 1)
    judged = [answer for pair in pairs for answer in labelled_answers(pair)]
    scores = np.array(await raw_harms(trainee.model, trainee.adapter, judged))
    labels = np.array([float(one.harmful) for one in judged])
    return average_precision(labels, scores)(np.ones(len(judged)))
