"""What follows from an answer: rulings, revision, metrics and the flag, and what happens when one
of them fails. Owns this sequence. Does not critique (rulings.py), judge inputs (input_judge.py),
store flags (flag_writer.py) or hold text back (draft.py, release.py).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guard.call import Answered, EngineRequest, Replacement, Ruling
from guard.criteria import Criterion, Place
from guard.draft import Choice
from guard.errors import CriticUnavailable
from guard.flag_writer import FlagWriter
from guard.label_reader import Subject
from guard.observer import RevisionOutcome
from guard.policy import Action
from guard.revise import Reviser
from guard.rulings import Rulings
from guard.subjects import Subjects
from guard.tool_calls import Piece, ToolCall
from guard.traces import note, span

_CLEARLY_HARMLESS = 0.05
"""A harm probability up to which a verdict that flags nothing is not in doubt."""

_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class Judge:
    """Rules on answers.

    subjects: what the critic is shown.
    """

    rulings: Rulings
    subjects: Subjects
    flags: FlagWriter
    reviser: Reviser

    def _calls(self, request: EngineRequest, pieces: Sequence[Piece]) -> Sequence[ToolCall]:
        """Returns the tool calls in an answer, if the policy has criteria for them. Raises
        CriticUnavailable when failing closed."""
        reader = request.call.call_reader
        if reader is None or not self.rulings.policy_of(request).criteria_of(Place.TOOL_CALL):
            return ()
        try:
            return reader.calls(request.prompt_ids, pieces)
        except CriticUnavailable as error:
            self.rulings.failed(request, error)
            return ()

    async def rule(
        self,
        request: EngineRequest,
        choice: Choice,
        *,
        judged: int = 0,
        scores: bool = False,
        ended: bool = True,
    ) -> Ruling:
        """Rules on an answer, whole or so far. Records nothing.

        Text after harm hides it from the critic: text after the answer's natural end, repetition,
        harmless paragraphs. So the answer is also judged up to its natural end, and wherever more
        than one verdict may cover came since the last one; the most harmful verdict counts.
        judged: tokens that earlier verdicts cover. scores: read categories even when not flagged.
        ended: whether the answer is whole.
        Raises CriticUnavailable when failing closed, and for an aborted answer.
        """
        if choice.aborted:
            # The engine may be shutting down: a critique might never return.
            raise CriticUnavailable("The engine aborted the answer; it was not judged.")
        subject = self.subjects.answer(request, choice.token_ids, ended=ended)
        subject = replace(subject, text=choice.text)
        calls = self._calls(request, choice.pieces) if ended else ()
        ruling = await self.rulings.rule(
            request,
            subject,
            len(choice.text),
            of="answer",
            scores=scores,
            criteria=self.rulings.policy_of(request).criteria_of_answer(calls),
            calls=calls,
            label_logprobs=choice.label_logprobs,
        )
        cuts = self.subjects.cuts(choice.token_ids, judged)
        if cuts and not ruling.decision.flagged:
            ruling = await self._rule_prefixes(request, choice, cuts, ruling, scores=scores)
        return _with_caller_block(request, ruling)

    async def rule_whole(
        self, request: EngineRequest, choice: Choice, *, judged: int = 0
    ) -> Ruling:
        """As `rule`, for an answer that has ended. When the verdict flags nothing but is in doubt,
        the answer is also judged after every few tokens, because its end can hide the harm of its
        beginning.
        """
        scores = request.call.wants_moderation
        ruling = await self.rule(request, choice, judged=judged, scores=scores)
        if ruling.decision.flagged or ruling.harm <= _CLEARLY_HARMLESS:
            return ruling
        # A stream may have released what its earlier verdicts cover. Earlier turns may hide the
        # request's meaning.
        steps = self.subjects.steps(request, choice.token_ids, judged=judged, without_history=True)
        if steps.pieces == self.subjects.answer(request, choice.token_ids).pieces:
            return ruling
        in_steps = await self.rulings.rule(
            request, steps, len(choice.text), of="steps", scores=scores
        )
        return _with_caller_block(request, ruling.or_stricter(in_steps))

    async def _rule_prefixes(
        self,
        request: EngineRequest,
        choice: Choice,
        cuts: Sequence[int],
        whole: Ruling,
        *,
        scores: bool,
    ) -> Ruling:
        """Returns the stricter of `whole` and the ruling on the answer's prefixes up to `cuts`."""
        prefixes = self.subjects.prefixes(request, choice.token_ids, cuts)
        ruling = await self.rulings.rule(
            request,
            replace(prefixes, text=choice.text),
            len(choice.text),
            of="beginnings",
            scores=scores,
            criteria=self.rulings.policy_of(request).criteria_of(Place.OUTPUT),
        )
        return whole.or_stricter(ruling)

    async def settle(
        self, request: EngineRequest, choice: Choice, ruling: Ruling, *, released: int = 0
    ) -> Ruling:
        """Completes a ruling: revises the answer if decided, counts, commits the flag, and adds the
        ruling to the call. Returns the final ruling. Release the answer only after this.

        released: characters of the choice that were sent before it was flagged.
        Raises StoreUnavailable when failing closed.
        """
        if ruling.decision.action is Action.REVISE:
            try:
                ruling = await self._revised(request, choice, ruling)
                if released:
                    ruling = _as_filtered(ruling)
            except asyncio.CancelledError:
                # The client disconnected; the flag is recorded all the same.
                await self.flags.write_answer(request, choice, ruling.blocked(), released=released)
                raise
        self.rulings.count(request, ruling)
        counted_by = self.rulings.counted_by(request)
        self.rulings.observer.action(ruling.decision.action, **counted_by)
        if ruling.decision.flagged:
            await self.flags.write_answer(request, choice, ruling, released=released)
        request.call.output_rulings[request.request_id, choice.index] = ruling
        request.outcome.answers.append(_answered(request, choice, ruling))
        return ruling

    async def _revised(self, request: EngineRequest, choice: Choice, ruling: Ruling) -> Ruling:
        """Returns the ruling with a revision that the critic passes, or else as a block."""
        started = time.perf_counter()
        with span("revision", request_id=request.request_id, choice=choice.index) as revision_span:
            revision, outcome = await self._revision(request, choice, ruling.decision.criterion)
            note(revision_span, outcome=outcome)
        self.rulings.observer.revision(outcome, time.perf_counter() - started)
        return ruling.blocked() if revision is None else replace(ruling, revision=revision)

    async def _revision(
        self, request: EngineRequest, choice: Choice, criterion: Criterion | None
    ) -> tuple[Replacement | None, RevisionOutcome]:
        if self.reviser.busy:
            return None, "busy"
        answer_ids = self.subjects.without_stop(choice.token_ids)
        try:
            async with asyncio.timeout(self.reviser.options.timeout_s):
                revision = await self.reviser.revise(request, answer_ids, criterion)
                if revision is None:
                    return None, "none"
                if await self._harmless(request, revision):
                    return revision, "used"
                return None, "flagged"
        except Exception as error:
            # Whatever the error, the answer stays withheld.
            _log.warning("No revision: %s", type(error).__name__)
            return None, "late" if isinstance(error, TimeoutError) else "failed"

    async def _harmless(self, request: EngineRequest, revision: Replacement) -> bool:
        """Whether the critic passes a revision. It is judged like an answer in doubt, with and
        without the history."""
        subjects = [
            self.subjects.steps(request, revision.token_ids, without_history=alone)
            for alone in (False, True)
        ]
        if subjects[0].pieces == subjects[1].pieces:
            del subjects[1]
        flags = (self._flags(request, revision, subject) for subject in subjects)
        return not any(await asyncio.gather(*flags))

    async def _flags(self, request: EngineRequest, revision: Replacement, subject: Subject) -> bool:
        calls = self._calls(request, [(revision.text, revision.token_ids)])
        ruling = await self.rulings.judge(
            request,
            replace(subject, text=revision.text),
            len(revision.text),
            of="revision",
            criteria=self.rulings.policy_of(request).criteria_of_answer(calls),
            calls=calls,
        )
        return ruling.decision.flagged


def _answered(request: EngineRequest, choice: Choice, ruling: Ruling) -> Answered:
    now, ended = time.perf_counter(), choice.ended_at
    guard_s = None if ended is None else now - ended
    return Answered(ruling, tuple(choice.pieces), now - request.started, guard_s)


def _with_caller_block(request: EngineRequest, ruling: Ruling) -> Ruling:
    """Turns a flagged ruling into a block when the caller asked for that."""
    return ruling.blocked() if request.call.block_output and ruling.decision.flagged else ruling


def _as_filtered(ruling: Ruling) -> Ruling:
    """Marks a revision as filtered: what was sent of the flagged answer comes before it."""
    revision = ruling.revision and replace(ruling.revision, finish_reason="content_filter")
    return replace(ruling, revision=revision)
