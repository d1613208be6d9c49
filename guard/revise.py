"""Rewrites a flagged answer: the model that wrote it explains what is wrong with it and answers
again, in the order analysis, guidance, answer, on the prefix that it has in its cache already.
Owns the budget of that. Does not judge what comes out (judge.py does, like any answer).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard import prompts
from guard.call import EngineRequest, Replacement, parts_besides_words
from guard.template import ChatFormat

_AFTER_ANALYSIS = "\n\n"


@dataclass(frozen=True)
class RevisionLimits:
    """max_tokens: of analysis and answer together. timeout_s: for both and the verdict on them.

    at_once: revisions under way in this process; beyond it an answer is blocked without one.
    """

    max_tokens: int
    timeout_s: float
    at_once: int


class Reviser:
    """engine: the unguarded engine client. max_model_len: its context in tokens."""

    def __init__(
        self, engine: Any, chat_format: ChatFormat, limits: RevisionLimits, *, max_model_len: int
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self.limits = limits
        self._max_model_len = max_model_len
        self._question = chat_format.question_after_answer(prompts.SAFE_ANSWER)
        self._free = asyncio.Semaphore(limits.at_once)

    @property
    def busy(self) -> bool:
        """Whether as many revisions are under way as may be."""
        return self._free.locked()

    async def revise(self, request: EngineRequest, answer_ids: Sequence[int]) -> Replacement | None:
        """The model's other answer, not yet judged; None when it has none, or when busy.

        answer_ids: the flagged answer's tokens without the end mark.
        """
        prompt_ids = [*request.prompt_ids, *answer_ids, *self._question]
        room = self._max_model_len - len(prompt_ids)
        if self.busy or room < 1 or request.prompt["type"] != "token":
            return None
        async with self._free:
            said = await self._said(request, prompt_ids, min(self.limits.max_tokens, room))
        text = said.text.partition(_AFTER_ANALYSIS)[2].strip()
        if not text or said.finish_reason in ("length", "abort"):
            return None
        return Replacement(text, tuple(self._format.encode(text)), len(said.token_ids))

    async def _said(self, request: EngineRequest, prompt_ids: list[int], max_tokens: int) -> Any:
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, output_kind=RequestOutputKind.FINAL_ONLY
        )
        prompt = {**tokens_input(prompt_ids), **parts_besides_words(request.prompt)}
        outputs = self._engine.generate(
            prompt, params, f"revision-{uuid4().hex}", **request.engine_options
        )
        async with aclosing(outputs):
            (said,) = [output.outputs[0] async for output in outputs]
        return said
