"""Rewrites a flagged answer: the model that wrote it is told that it is harmful and says why, and
answers again in a second turn, on the prefix that it has in its cache already. Owns the budget of
that. Does not judge what comes out (judge.py does, like any answer).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard import prompts
from guard.call import EngineRequest, Replacement, parts_besides_words
from guard.template import ChatFormat

_ANALYSIS_SHARE = 1 / 3
"""Of the tokens and of the time: the analysis is cut there, so that a slow model still answers."""


@dataclass(frozen=True)
class RevisionLimits:
    """max_tokens: of analysis and answer together. timeout_s: for both and the verdict on them.

    at_once: revisions under way in this process; beyond it an answer is blocked without one.
    """

    max_tokens: int
    timeout_s: float
    at_once: int


@dataclass
class _Reply:
    """A reply so far. finish_reason: None while it may go on."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


class Reviser:
    """engine: the unguarded engine client. max_model_len: its context in tokens.
    stop_ids: the tokens that end an answer without being part of it.
    """

    def __init__(
        self,
        engine: Any,
        chat_format: ChatFormat,
        limits: RevisionLimits,
        *,
        max_model_len: int,
        stop_ids: frozenset[int],
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self.limits = limits
        self._max_model_len = max_model_len
        self._stop_ids = stop_ids
        guided = prompts.GUIDED_ANALYSIS.format(subject="answer")
        self._analysis_question = chat_format.question_after_answer(guided)
        self._revision_question = chat_format.question_after_answer(prompts.REVISE)
        self._free = asyncio.Semaphore(limits.at_once)

    @property
    def busy(self) -> bool:
        """Whether as many revisions are under way as may be."""
        return self._free.locked()

    async def revise(self, request: EngineRequest, answer_ids: Sequence[int]) -> Replacement | None:
        """The model's other answer, not yet judged; None when it has none, or when busy.

        It is no longer than the caller allows an answer to be, and None where it does not end
        within our own limit. answer_ids: the flagged answer's tokens without the end mark.
        """
        if self.busy or request.prompt["type"] != "token":
            return None
        async with self._free:
            prompt_ids = [*request.prompt_ids, *answer_ids, *self._analysis_question]
            analysis = await self._analysis(request, prompt_ids)
            prompt_ids += [t for t in analysis.token_ids if t not in self._stop_ids]
            prompt_ids += self._revision_question
            ours = self._room(prompt_ids, self.limits.max_tokens - len(analysis.token_ids))
            room = min(ours, request.max_tokens or ours)
            answer = _Reply()
            await self._generate(request, prompt_ids, room, answer)
        text = answer.text.strip()
        cut = answer.finish_reason == "length" and room == ours
        if not text or cut or answer.finish_reason in ("abort", None):
            return None
        generated = len(analysis.token_ids) + len(answer.token_ids)
        return Replacement(text, tuple(self._format.encode(text)), generated)

    async def _analysis(self, request: EngineRequest, prompt_ids: list[int]) -> _Reply:
        """Why the answer is harmful, as far as the model came in its share of the time."""
        room = self._room(prompt_ids, int(self.limits.max_tokens * _ANALYSIS_SHARE))
        analysis = _Reply()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.timeout_s * _ANALYSIS_SHARE):
                await self._generate(request, prompt_ids, room, analysis)
        return analysis

    def _room(self, prompt_ids: list[int], wanted: int) -> int:
        """How many tokens may follow, at most `wanted`; 0 or less where there is no room."""
        return min(wanted, self._max_model_len - len(prompt_ids))

    async def _generate(
        self, request: EngineRequest, prompt_ids: list[int], max_tokens: int, reply: _Reply
    ) -> None:
        """Fills `reply` as it is generated."""
        if max_tokens < 1:
            return
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA
        )
        prompt = {**tokens_input(prompt_ids), **parts_besides_words(request.prompt)}
        outputs = self._engine.generate(
            prompt, params, f"revision-{uuid4().hex}", **request.engine_options
        )
        async with aclosing(outputs):
            async for output in outputs:
                (piece,) = output.outputs
                reply.token_ids += piece.token_ids
                reply.text += piece.text
                reply.finish_reason = piece.finish_reason
