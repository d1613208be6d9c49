"""What is judged of a request before its answer is released: the open turn, what tools and
documents say in it, and what was masked. Owns which of these is judged, when, its flags and the
refusal of a request. Does not judge answers (judge.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from guard.call import EngineRequest, Ruling
from guard.criteria import Place
from guard.errors import InputBlocked
from guard.flag_writer import FlagWriter
from guard.policy import STRICTNESS, Action
from guard.rulings import Rulings
from guard.subjects import Subjects


@dataclass(frozen=True)
class InputJudge:
    """Rules on inputs.

    block_input: refuse flagged requests even when the caller did not ask for it.
    """

    rulings: Rulings
    subjects: Subjects
    flags: FlagWriter
    block_input: bool

    def is_needed(self, request: EngineRequest) -> bool:
        """Whether the input needs a ruling and has none yet."""
        call = request.call
        # One call may generate many times (beam search: once per token) for the same messages.
        filed = bool(call.messages) and call.input_ruling is not None
        return not filed and (
            self._judges_turn(request) or self._judges_results(request) or bool(call.masked_input)
        )

    async def rule(self, request: EngineRequest, end_answer: Callable[[], object]) -> None:
        """Rules on the input, stores what is flagged and sets call.input_ruling.

        end_answer: ends the generation of the answer; called once the request is to be refused.
        Raises InputBlocked when the open turn is flagged and flagged input is blocked, or when a
        criterion that does not let out what it flags applies to a tool's result; CriticUnavailable
        or StoreUnavailable when failing closed.
        """
        call = request.call
        call.pending_input_verdicts += 1
        turn, results = await asyncio.gather(self._rule_turn(request), self._rule_results(request))
        masked = self._rule_masked(request)
        call.input_ruling = ruling = _combined(_combined(turn, results), masked)
        assert ruling is not None
        self.rulings.count(request, ruling)
        refusal = self._refusal(request, turn, results)
        if refusal is not None:
            end_answer()
        flagged = [
            (place, _settled(one, refused=refusal is not None))
            for place, one in ((Place.INPUT, turn), (Place.TOOL_RESULT, results))
            if one is not None and one.decision.flagged
        ]
        if flagged:
            await self.flags.write_input(request, flagged)
        if refusal is not None:
            self.rulings.observer.input_blocked(**self.rulings.counted_by(request))
            request.outcome.input_blocked = True
            raise InputBlocked(refusal)
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

    def _refusal(
        self, request: EngineRequest, turn: Ruling | None, results: Ruling | None
    ) -> str | None:
        """Returns why the request is refused, None if it is not."""
        if results is not None and results.withheld:
            names = ", ".join(results.decision.categories)
            return f"A tool's result or a document was flagged: {names}."
        if turn is None or not turn.decision.flagged:
            return None
        shadow = self.rulings.policy_of(request).shadow
        blocks = request.call.block_input or (self.block_input and not shadow)
        return "The request was flagged, and flagged input is blocked." if blocks else None


def _settled(ruling: Ruling, *, refused: bool) -> Ruling:
    """Returns the ruling on a flagged input with what was done: a request that is answered is
    annotated, whatever the policy does with answers, unless it lets them pass."""
    if refused:
        return ruling.blocked()
    passes = ruling.decision.action is Action.PASS
    action = Action.PASS if passes else Action.ANNOTATE
    return replace(ruling, decision=replace(ruling.decision, action=action))


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
