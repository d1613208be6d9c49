"""What the two adapters of a rollout do, side by side. Owns what is counted of each request, and
the shadow: the new adapter's verdict on answers of the old one, after they were released. Does not
choose adapters or store counts (rollouts.py).
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from guard.adapters import adapter_name, name_of
from guard.call import Answered, EngineRequest, Outcome
from guard.draft import Choice
from guard.errors import GuardError
from guard.judge import Judge
from guard.rollouts import Rollouts, is_shadowed
from guard.store.rollouts import ArmCounts, RolloutCounts, ShadowCounts, StoredRollout
from guard.tasks import spawn

_SHADOWS_AT_ONCE = 4
"""Verdicts of the shadow at once in one process. Further answers are left out, so that it never
takes more of the engine."""

_log = logging.getLogger("vllm.setback")


class Comparison:
    """Counts what happens to requests while a rollout is running."""

    def __init__(self, judge: Judge, rollouts: Rollouts) -> None:
        self._judge = judge
        self._rollouts = rollouts
        self._shadows = asyncio.Semaphore(_SHADOWS_AT_ONCE)

    @contextmanager
    def counting(self, request: EngineRequest) -> Iterator[None]:
        """Counts the request when the block ends, even by an error. All its answers have been
        released then, or never will be."""
        try:
            yield
        finally:
            rollout = self._rollouts.current
            if rollout is not None:
                self._count(rollout, request)

    def _count(self, rollout: StoredRollout, request: EngineRequest) -> None:
        counts = _counted(request.outcome)
        if request.adapter == name_of(rollout.version):
            self._rollouts.count(rollout.id, RolloutCounts(new=counts))
        elif request.adapter == name_of(rollout.compared_with):
            self._rollouts.count(rollout.id, RolloutCounts(old=counts))
            client = request.call.client
            if client is not None and is_shadowed(rollout, client):
                for answer in request.outcome.answers:
                    self._shadow(rollout, request, answer)

    def _shadow(self, rollout: StoredRollout, request: EngineRequest, answer: Answered) -> None:
        if answer.ruling.verdict is not None and not self._shadows.locked():
            spawn(self._judge_again(rollout, request, answer))

    async def _judge_again(
        self, rollout: StoredRollout, request: EngineRequest, answer: Answered
    ) -> None:
        """Has the new adapter judge an answer, by the request's policy, and counts both verdicts.
        Acts on none of them."""
        try:
            async with self._shadows, self._rollouts.adapters.of(rollout.version) as lora_request:
                priority = request.engine_options["priority"] + 1
                again = replace(
                    request,
                    adapter=adapter_name(lora_request),
                    engine_options={"lora_request": lora_request, "priority": priority},
                    outcome=Outcome(),
                )
                choice = Choice(0, token_ids=answer.token_ids, pieces=list(answer.pieces))
                ruling = await self._judge.rule_whole(again, choice)
        except GuardError as error:
            _log.warning("The shadow of rollout %d has no verdict: %s", rollout.id, error)
            return
        if ruling.verdict is not None:
            new, old = ruling.decision.flagged, answer.ruling.decision.flagged
            shadow = ShadowCounts(1, new and old, new and not old, old and not new)
            self._rollouts.count(rollout.id, RolloutCounts(shadow=shadow))


def _counted(outcome: Outcome) -> ArmCounts:
    counts = ArmCounts(requests=1, errors=outcome.failures)
    if outcome.input_blocked:
        # What was generated beside the verdict on the input came to nobody.
        return counts + ArmCounts(answers=1, flagged=1, withheld=1)
    for answer in outcome.answers:
        counts += _answer_counts(answer)
    return counts


def _answer_counts(answer: Answered) -> ArmCounts:
    ruling = answer.ruling
    counts = ArmCounts(answers=1, flagged=ruling.decision.flagged, withheld=ruling.withheld)
    if answer.guard_s is None:
        return counts
    token_s = answer.seconds / max(1, len(answer.token_ids))
    return counts + ArmCounts(
        timed=1,
        guard_s=answer.guard_s,
        guard_s2=answer.guard_s**2,
        token_s=token_s,
        token_s2=token_s**2,
    )
