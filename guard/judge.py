"""What the guard finds of a text and what follows from it: critique, decision, revision, counts and
the flag, and what happens when one of them fails. Holds no text: draft.py and release.py do.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opentelemetry.trace import Span

from guard.call import EngineRequest, Replacement, Ruling
from guard.critic import Critic, Subject
from guard.draft import Choice
from guard.errors import CriticUnavailable, InputBlocked, StoreUnavailable
from guard.observer import Observer, RevisionOutcome
from guard.policy import Action, Decision, Policy
from guard.recorder import Recorder
from guard.revise import Reviser
from guard.tasks import spawn
from guard.template import ChatFormat
from guard.traces import note, span
from guard.windows import Windows

_CLEAR = 0.05
"""Harm, as a probability, up to which a verdict that flags nothing is not doubted."""

_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class Judge:
    """windows: where an answer that is being written is judged.
    stop_ids: the tokens that end an answer without being part of it.
    fail_open: let an answer out when its critique or its flag's storing fails.
    block_input: refuse requests that are flagged themselves, whoever asks.
    """

    critic: Critic
    chat_format: ChatFormat
    policy: Policy
    recorder: Recorder
    observer: Observer
    reviser: Reviser
    windows: Windows
    stop_ids: frozenset[int]
    fail_open: bool
    block_input: bool

    def judges_input(self, request: EngineRequest) -> bool:
        """Whether a ruling on what was asked is wanted and not filed yet."""
        call = request.call
        # One call may generate often, a beam search for each token; its messages stay the same.
        filed = bool(call.messages) and call.input_ruling is not None
        return (self.block_input or call.wants_moderation) and not filed

    async def rule_input(self, request: EngineRequest) -> None:
        """Files the ruling on what was asked last.

        Raises InputBlocked when it is flagged and to be blocked, CriticUnavailable when failing
        closed.
        """
        call = request.call
        call.inputs_awaited += 1
        text = self._asked(request)
        subject = self.critic.text(self.chat_format.encode(text))
        call.input_ruling = ruling = await self._ruling(
            request, subject, len(text), of="input", scores=call.wants_moderation
        )
        self._count(request, ruling)
        if (self.block_input or call.block_input) and ruling.decision.flagged:
            self.observer.input_blocked(request.adapter)
            raise InputBlocked("The request was flagged, and flagged input is blocked.")
        call.inputs_awaited -= 1

    def _asked(self, request: EngineRequest) -> str:
        """The last user message that holds text; the whole prompt where messages are unknown."""
        turns = reversed(request.call.messages)
        texts = (turn["content"] for turn in turns if turn["role"] == "user" and turn["content"])
        return next(texts, None) or self.chat_format.decode(request.prompt_ids)

    async def rule(
        self, request: EngineRequest, choice: Choice, *, judged: int = 0, scores: bool = False
    ) -> Ruling:
        """What is to be done with an answer, whole or so far; nothing is filed yet.

        What follows harm hides it from the critic: text past the answer's natural end, repetition,
        harmless paragraphs. So the answer is also judged up to its natural end and wherever more
        than `windows.most` tokens came since the last verdict; the most harmful verdict counts.
        judged: tokens that verdicts on the answer so far cover. scores: whether categories are read
        also of what is not flagged.
        Raises CriticUnavailable when failing closed, and for an answer that was given up.
        """
        if choice.aborted:
            # Nobody may be left to answer a critique: it would be waited for in vain.
            raise CriticUnavailable("The engine gave the answer up; it was not judged.")
        subject = self._subject(request, choice.token_ids)
        ruling = await self._ruling(
            request, subject, len(choice.text), of="answer", scores=scores, read=choice.read
        )
        cuts = self._cuts(choice.token_ids, judged)
        if cuts and not ruling.decision.flagged:
            ruling = await self._rule_beginnings(request, choice, cuts, ruling, scores=scores)
        return _as_asked(request, ruling)

    async def rule_whole(
        self, request: EngineRequest, choice: Choice, *, judged: int = 0
    ) -> Ruling:
        """As `rule`, of an answer that has ended. Where that flags nothing but is in doubt, the
        answer is judged after every few tokens: what comes last can talk the critic out of what it
        saw before.
        """
        scores = request.call.wants_moderation
        ruling = await self.rule(request, choice, judged=judged, scores=scores)
        if ruling.decision.flagged or ruling.verdict is None or ruling.verdict.harm <= _CLEAR:
            return ruling
        length = len(choice.token_ids)
        # What a stream's verdicts cover may be out already.
        ends = [end for end in self.windows.close_cuts(length) if end > judged] + [length]
        ruling = await self._rule_beginnings(
            request, choice, ends, ruling, scores=scores, alone=True
        )
        return _as_asked(request, ruling)

    def _cuts(self, answer_ids: Sequence[int], judged: int) -> list[int]:
        """Where the answer is judged besides its end: its natural end, and so that no verdict
        covers too much."""
        inside = range(max(judged, 1), len(answer_ids) - 1)
        natural = next((end for end in inside if answer_ids[end] in self.stop_ids), None)
        cuts = set(self.windows.cuts(judged, len(answer_ids)))
        # A caller's ignore_eos makes the model go on after its end mark.
        return sorted(cuts if natural is None else cuts | {natural})

    async def _rule_beginnings(
        self,
        request: EngineRequest,
        choice: Choice,
        ends: Sequence[int],
        whole: Ruling,
        *,
        scores: bool,
        alone: bool = False,
    ) -> Ruling:
        """The stricter of `whole` and the ruling on the answer up to each of `ends`.

        alone: without the conversation before the request, which may hide what is asked.
        """
        begun = self._beginnings(request, choice.token_ids, ends, alone=alone)
        known = self._subject(request, choice.token_ids).pieces
        # Without a history the answer alone is what was judged.
        begun = replace(begun, pieces=tuple(p for p in begun.pieces if p not in known))
        if not begun.pieces:
            return whole
        ruling = await self._ruling(
            request, begun, len(choice.text), of="beginnings", scores=scores
        )
        # A category's threshold may be below another's.
        return max(whole, ruling, key=lambda each: (each.decision.flagged, _harm(each)))

    async def settle(
        self, request: EngineRequest, choice: Choice, ruling: Ruling, *, released: int = 0
    ) -> Ruling:
        """Has the answer revised where that was decided, counts, commits the flag and tells the
        call; returns what came of it. What it lets out may be released after this, not before.

        released: how many characters of the choice were out before it was flagged.
        Raises StoreUnavailable when failing closed.
        """
        if ruling.decision.action is Action.REVISE:
            try:
                ruling = await self._revised(request, choice, ruling)
            except asyncio.CancelledError:
                # The caller has left; what was flagged is kept all the same.
                await self._record(request, choice, _blocked(ruling), released)
                raise
        self._count(request, ruling)
        self.observer.action(ruling.decision.action, request.adapter)
        if ruling.decision.flagged:
            await self._record(request, choice, ruling, released)
        request.call.output_rulings[request.request_id, choice.index] = ruling
        return ruling

    async def _revised(self, request: EngineRequest, choice: Choice, ruling: Ruling) -> Ruling:
        """The ruling with a revision that the critic passes, or turned into a block."""
        started = time.perf_counter()
        with span("revision", request_id=request.request_id, choice=choice.index) as told:
            revision, outcome = await self._revision(request, choice)
            note(told, outcome=outcome)
        self.observer.revision(outcome, time.perf_counter() - started)
        return _blocked(ruling) if revision is None else replace(ruling, revision=revision)

    async def _revision(
        self, request: EngineRequest, choice: Choice
    ) -> tuple[Replacement | None, RevisionOutcome]:
        if self.reviser.busy:
            return None, "busy"
        answer_ids = self._without_stop(choice.token_ids)
        try:
            async with asyncio.timeout(self.reviser.limits.timeout_s):
                revision = await self.reviser.revise(request, answer_ids)
                if revision is None:
                    return None, "none"
                if await self._harmless(request, revision):
                    return revision, "used"
                return None, "flagged"
        except Exception as error:
            # Whatever went wrong, the answer stays withheld.
            _log.warning("No revision: %s", type(error).__name__)
            return None, "late" if isinstance(error, TimeoutError) else "failed"

    async def _harmless(self, request: EngineRequest, revision: Replacement) -> bool:
        """Whether the critic passes a revision, judged as strictly as an answer in doubt: at many
        cuts, both in its conversation and without the history."""
        length = len(revision.token_ids)
        ends = [length, *self.windows.close_cuts(length)]
        subject = self._beginnings(request, revision.token_ids, ends)
        alone = self._beginnings(request, revision.token_ids, ends, alone=True)
        # Both are equal where the conversation has no history.
        pieces = {tuple(piece): piece for piece in (*subject.pieces, *alone.pieces)}
        subject = replace(subject, pieces=tuple(pieces.values()))
        with span("critique", request_id=request.request_id, of="revision") as told:
            verdict = await self.critic.judge(
                subject, categories_from=self.policy.lowest_threshold, **request.engine_options
            )
            self.observer.critique_tokens(verdict.tokens)
            ruling = Ruling(verdict, self.policy.decide(verdict), len(revision.text))
            _note_ruling(told, ruling)
        return not ruling.decision.flagged

    def _subject(
        self, request: EngineRequest, answer_ids: Sequence[int], *, alone: bool = False
    ) -> Subject:
        answer_ids = self._without_stop(answer_ids)
        in_chat = self.chat_format.is_chat_prompt(request.prompt_ids)
        if alone and in_chat and request.prompt["type"] == "token":
            return self.critic.answer_alone(request.prompt, request.prompt_ids, answer_ids)
        if in_chat or request.prompt["type"] != "token":
            return self.critic.answer(request.prompt, request.prompt_ids, answer_ids)
        # A raw completion has no turns to put a question after: judge what it reads as, whole.
        text = self.chat_format.decode([*request.prompt_ids, *answer_ids])
        return self.critic.text(self.chat_format.encode(text))

    def _beginnings(
        self,
        request: EngineRequest,
        answer_ids: Sequence[int],
        ends: Sequence[int],
        *,
        alone: bool = False,
    ) -> Subject:
        """An answer up to each of `ends`, of which there is at least one."""
        cut = [self._subject(request, answer_ids[:end], alone=alone) for end in ends]
        return replace(cut[0], pieces=tuple(piece for each in cut for piece in each.pieces))

    def _without_stop(self, answer_ids: Sequence[int]) -> Sequence[int]:
        ended = bool(answer_ids) and answer_ids[-1] in self.stop_ids
        return answer_ids[:-1] if ended else answer_ids

    async def _ruling(
        self,
        request: EngineRequest,
        subject: Subject,
        checked: int,
        *,
        of: str,
        scores: bool,
        read: Mapping[int, float] | None = None,
    ) -> Ruling:
        needed = 0.0 if scores else self.policy.lowest_threshold
        with span(
            "critique", request_id=request.request_id, adapter=request.adapter, of=of
        ) as told:
            try:
                verdict = await self.critic.judge(
                    subject, categories_from=needed, read=read, **request.engine_options
                )
            except CriticUnavailable as error:
                self.observer.failed(error.code)
                if not self.fail_open:
                    raise
                passed = Decision(Action.PASS, (), "The critique failed; failing open.")
                return Ruling(None, passed, checked=0)
            self.observer.critique_tokens(verdict.tokens)
            ruling = Ruling(verdict, self.policy.decide(verdict), checked)
            _note_ruling(told, ruling)
            return ruling

    def _count(self, request: EngineRequest, ruling: Ruling) -> None:
        if ruling.verdict is not None:
            categories = ruling.decision.categories
            self.observer.verdict(categories[0] if categories else "none", request.adapter)

    async def _record(
        self, request: EngineRequest, choice: Choice, ruling: Ruling, released: int
    ) -> None:
        """Commits the flag and counts it, whether or not the caller stays to see it."""
        await asyncio.shield(spawn(self._recorded(request, choice, ruling, released)))

    async def _recorded(
        self, request: EngineRequest, choice: Choice, ruling: Ruling, released: int
    ) -> None:
        started = time.perf_counter()
        try:
            with span("store", request_id=request.request_id, choice=choice.index):
                await self.recorder.record(
                    request.call,
                    ruling,
                    request_id=request.request_id,
                    adapter=request.adapter,
                    choice=choice.index,
                    prompt=self.chat_format.decode(request.prompt_ids),
                    answer=choice.text,
                    released=released,
                    revision=ruling.revision.text if ruling.revision else None,
                )
        except StoreUnavailable as error:
            self.observer.failed(error.code)
            if not self.fail_open:
                raise
        else:
            self.observer.flag_written(time.perf_counter() - started)


def _harm(ruling: Ruling) -> float:
    return ruling.verdict.harm if ruling.verdict else 0.0


def _as_asked(request: EngineRequest, ruling: Ruling) -> Ruling:
    """Stricter than the policy where the caller asked for that."""
    return _blocked(ruling) if request.call.block_output and ruling.decision.flagged else ruling


def _blocked(ruling: Ruling) -> Ruling:
    return replace(ruling, decision=replace(ruling.decision, action=Action.BLOCK))


def _note_ruling(told: Span, ruling: Ruling) -> None:
    """What was found, in figures and names."""
    if told.is_recording() and ruling.verdict is not None:
        note(
            told,
            harm=ruling.verdict.harm,
            categories=ruling.decision.categories,
            action=ruling.decision.action.value,
            checked_characters=ruling.checked,
        )
