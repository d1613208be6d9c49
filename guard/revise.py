"""Rewrites a flagged answer. The model is told that its answer is harmful, says why, and answers
again in a second turn, reusing the cached prefix. Owns the budget for this. Does not judge the
revision (judge.py judges it like any answer).
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
from guard.call import (
    EngineRequest,
    FinishReason,
    Replacement,
    RevisedFinishReason,
    non_text_parts,
)
from guard.criteria import Criterion
from guard.sentences import whole_sentences
from guard.template import ChatFormat

_ANALYSIS_SHARE = 1 / 3
"""Share of the tokens and of the time after which the analysis is cut off, to leave room for the
answer."""
_GENERATION_SHARE = 5 / 6
"""Share of the time after which the answer is cut off, to leave room for the verdict on it."""


@dataclass(frozen=True)
class RevisionOptions:
    """max_tokens: of analysis and answer together. timeout_s: for both and the verdict on them.

    at_once: concurrent revisions in this process; a further flagged answer is blocked instead.
    finish_reason: what a revised answer ends with, if nothing of the flagged one was sent.
    """

    max_tokens: int
    timeout_s: float
    at_once: int
    finish_reason: RevisedFinishReason


@dataclass
class _PartialReply:
    """A reply so far. finish_reason: None while it is generated."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


class Reviser:
    """Writes revisions of flagged answers.

    engine: the unguarded engine client. max_model_len: its context length in tokens.
    stop_ids: tokens that end an answer without being part of it.
    """

    def __init__(
        self,
        engine: Any,
        chat_format: ChatFormat,
        options: RevisionOptions,
        *,
        max_model_len: int,
        stop_ids: frozenset[int],
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self.options = options
        self._max_model_len = max_model_len
        self._stop_ids = stop_ids
        self._slots = asyncio.Semaphore(options.at_once)

    @property
    def busy(self) -> bool:
        """Whether the limit of concurrent revisions is reached."""
        return self._slots.locked()

    async def revise(
        self,
        request: EngineRequest,
        answer_ids: Sequence[int],
        criterion: Criterion | None = None,
    ) -> Replacement | None:
        """Returns the model's revision, not yet judged, or None when there is none or when busy.

        It is at most as long as the caller allows an answer to be. One that our own limit of tokens
        or time cuts off ends with its last whole sentence. answer_ids: the flagged answer's tokens
        without the end mark. criterion: why it was flagged, unless it was for harm. Raises
        TimeoutError when the time ends before a whole sentence.
        """
        if self.busy or request.prompt["type"] != "token":
            return None
        begun = asyncio.get_running_loop().time()
        latest = begun + self.options.timeout_s * _GENERATION_SHARE
        async with self._slots:
            why, again = (
                self._format.question_after_answer(question) for question in _questions(criterion)
            )
            prompt_ids = [*request.prompt_ids, *answer_ids, *why]
            analysis = await self._analysis(request, prompt_ids)
            prompt_ids += [t for t in analysis.token_ids if t not in self._stop_ids]
            prompt_ids += again
            own_limit = self._available_tokens(
                prompt_ids, self.options.max_tokens - len(analysis.token_ids)
            )
            max_tokens = min(own_limit, request.max_tokens or own_limit)
            answer = _PartialReply()
            late = await self._late(latest, request, prompt_ids, max_tokens, answer)
        truncated = late or (answer.finish_reason == "length" and max_tokens == own_limit)
        text = whole_sentences(answer.text) if truncated else answer.text.strip()
        if late and not text:
            raise TimeoutError
        ended = late or answer.finish_reason not in ("abort", None)
        if not text or not ended:
            return None
        generated = len(analysis.token_ids) + len(answer.token_ids)
        finish_reason: FinishReason = self.options.finish_reason
        if finish_reason == "stop" and (late or answer.finish_reason == "length"):
            finish_reason = "length"
        return Replacement(text, tuple(self._format.encode(text)), generated, finish_reason)

    async def _analysis(self, request: EngineRequest, prompt_ids: list[int]) -> _PartialReply:
        """Returns why the answer is harmful, as far as the model got in its share of the time."""
        max_tokens = self._available_tokens(
            prompt_ids, int(self.options.max_tokens * _ANALYSIS_SHARE)
        )
        analysis = _PartialReply()
        latest = asyncio.get_running_loop().time() + self.options.timeout_s * _ANALYSIS_SHARE
        await self._late(latest, request, prompt_ids, max_tokens, analysis)
        return analysis

    async def _late(self, latest: float, *generation: Any) -> bool:
        """Generates up to a time of the event loop. Returns whether that cut the reply off.

        generation: the arguments of _generate.
        """
        limit = asyncio.timeout_at(latest)
        with suppress(TimeoutError):
            async with limit:
                await self._generate(*generation)
        return limit.expired()

    def _available_tokens(self, prompt_ids: list[int], limit: int) -> int:
        """Returns how many tokens may follow, at most `limit`; 0 or less when there is no room."""
        return min(limit, self._max_model_len - len(prompt_ids))

    async def _generate(
        self, request: EngineRequest, prompt_ids: list[int], max_tokens: int, reply: _PartialReply
    ) -> None:
        """Fills `reply` while it is generated."""
        if max_tokens < 1:
            return
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA
        )
        prompt = {**tokens_input(prompt_ids), **non_text_parts(request.prompt)}
        outputs = self._engine.generate(
            prompt, params, f"revision-{uuid4().hex}", **request.engine_options
        )
        async with aclosing(outputs):
            async for output in outputs:
                (delta,) = output.outputs
                reply.token_ids += delta.token_ids
                reply.text += delta.text
                reply.finish_reason = delta.finish_reason


def _questions(criterion: Criterion | None) -> tuple[str, str]:
    """Returns the questions why an answer is withheld, and for another one."""
    if criterion is None:
        return prompts.GUIDED_ANALYSIS.format(subject="answer"), prompts.REVISE
    return criterion.explained.replace("{subject}", "answer"), prompts.REVISE_BY_CRITERION
