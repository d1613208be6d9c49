"""What is judged of a request before its answer is released: the open turn, what tools and
documents say in it, and what was masked. Owns which of these is judged, when, and the refusal of a
request. Does not judge answers (judge.py).
"""

import asyncio
from dataclasses import dataclass, replace

from guard.call import EngineRequest, Ruling
from guard.criteria import Place
from guard.errors import InputBlocked
from guard.policy import STRICTNESS
from guard.rulings import Rulings
from guard.subjects import Subjects


@dataclass(frozen=True)
class InputJudge:
    """Rules on inputs.

    block_input: refuse flagged requests even when the caller did not ask for it.
    """

    rulings: Rulings
    subjects: Subjects
    block_input: bool

    def is_needed(self, request: EngineRequest) -> bool:
        """Whether the input needs a ruling and has none yet."""
        call = request.call
        # One call may generate many times (beam search: once per token) for the same messages.
        filed = bool(call.messages) and call.input_ruling is not None
        return not filed and (
            self._judges_turn(request) or self._judges_results(request) or bool(call.masked_input)
        )

    async def rule(self, request: EngineRequest) -> None:
        """Rules on the input and sets call.input_ruling.

        Raises InputBlocked when the open turn is flagged and flagged input is blocked, or when a
        criterion that does not let out what it flags applies to a tool's result; CriticUnavailable
        when failing closed.
        """
        call = request.call
        call.pending_input_verdicts += 1
        turn, results = await asyncio.gather(self._rule_turn(request), self._rule_results(request))
        masked = self._rule_masked(request)
        call.input_ruling = ruling = _combined(_combined(turn, results), masked)
        assert ruling is not None
        self.rulings.count(request, ruling)
        if results is not None and results.withheld:
            names = ", ".join(results.decision.categories)
            self._refuse(request, f"A tool's result or a document was flagged: {names}.")
        if turn is not None and turn.decision.flagged and (self.block_input or call.block_input):
            self._refuse(request, "The request was flagged, and flagged input is blocked.")
        call.pending_input_verdicts -= 1

    def _judges_turn(self, request: EngineRequest) -> bool:
        return self.block_input or request.call.wants_moderation

    def _judges_results(self, request: EngineRequest) -> bool:
        criteria = self.rulings.policy_of(request).criteria_of(Place.TOOL_RESULT)
        return bool(criteria and request.call.tool_results)

    async def _rule_turn(self, request: EngineRequest) -> Ruling | None:
        if not self._judges_turn(request):
            return None
        subject, length = self.subjects.input(request)
        return await self.rulings.rule(
            request,
            subject,
            length,
            of="input",
            scores=request.call.wants_moderation,
            criteria=self.rulings.policy_of(request).criteria_of_input(),
        )

    async def _rule_results(self, request: EngineRequest) -> Ruling | None:
        if not self._judges_results(request):
            return None
        text = request.call.tool_results
        return await self.rulings.rule_by_criteria(
            request,
            self.subjects.text(text),
            len(text),
            of="tool results",
            criteria=self.rulings.policy_of(request).criteria_of(Place.TOOL_RESULT),
        )

    def _rule_masked(self, request: EngineRequest) -> Ruling | None:
        policy = self.rulings.policy_of(request)
        if not policy.masked_in(Place.INPUT):
            return None
        verdict, decision = policy.decide_on_masked(request.call.masked_input)
        return Ruling(verdict, decision, checked=len(request.call.open_turn))

    def _refuse(self, request: EngineRequest, reason: str) -> None:
        self.rulings.observer.input_blocked(request.adapter)
        request.outcome.input_blocked = True
        raise InputBlocked(reason)


def _combined(turn: Ruling | None, others: Ruling | None) -> Ruling | None:
    """Returns the ruling on all of the input: the turn's verdict with what the criteria of the
    other ruling say, and the stricter decision about either."""
    if turn is None or others is None or turn.verdict is None or others.verdict is None:
        return turn or others
    decisive = max(others, turn, key=lambda ruling: STRICTNESS[ruling.decision.action]).decision
    categories = dict.fromkeys((*turn.decision.categories, *others.decision.categories))
    return replace(
        turn,
        verdict=turn.verdict.with_criteria(others.verdict.criteria),
        decision=replace(decisive, categories=tuple(categories)),
    )
