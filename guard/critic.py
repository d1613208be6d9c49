"""The self-critique: the served model itself judges whether a text is harmful and how. Owns the
assembly of what is judged from token ids, its windows, and the verdict. Reads labels by
label_reader.py. Does not decide what follows from a verdict (policy.py). Stores nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from uuid import uuid4

from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.calibration import UNSCALED, Scales
from guard.call import non_text_parts
from guard.criteria import Criterion
from guard.criterion_reader import CriterionReader
from guard.critique_format import CritiqueFormat, critique_format
from guard.errors import CriticUnavailable
from guard.label_reader import (
    LabelRead,
    LabelReader,
    Subject,
    build_prompt,
    raising_critic_unavailable,
    session_read,
)
from guard.prompts import CritiqueStyle, version_of
from guard.template import ChatFormat, Tokenizer
from guard.verdict import TokensRead, Verdict
from guard.vllm.session import CritiquePlan
from guard.windows import overlapping_windows

_ANALYSIS_TOKENS = 128
_CONTEXT_SHARE = 0.5


@dataclass(frozen=True)
class Analysis:
    """The critic's explanation of a verdict, and the explanation as an answer to be judged."""

    text: str
    subject: Subject


class Critic:
    """Judges answers and texts by one-token label reads on the served model.

    engine: the unguarded engine client. max_model_len: its context length in tokens.
    timeout_s: for each batch of reads; then CriticUnavailable is raised.
    criteria: those of the policies.
    style_of: returns an adapter's critique style. scales_of: returns its calibrations. Both take
    None for the base model.
    window_tokens: how many tokens of the judged text one window holds.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        max_model_len: int,
        timeout_s: float,
        criteria: Sequence[Criterion] = (),
        style_of: Callable[[LoRARequest | None], CritiqueStyle] = lambda _: CritiqueStyle.YES_NO,
        scales_of: Callable[[LoRARequest | None], Scales] = lambda _: UNSCALED,
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self._timeout_s = timeout_s
        self._reader = LabelReader(engine, timeout_s)
        self._criteria = CriterionReader(self._reader, tokenizer, chat_format)
        self._max_model_len = max_model_len
        self._style_of = style_of
        self._scales_of = scales_of
        # Built when first needed: a style that the tokenizer cannot spell is only refused then.
        self._format_of = cache(lambda style: critique_format(style, tokenizer, chat_format))
        self.window_tokens = self._window_tokens(criteria)

    def prepare(self, criteria: Sequence[Criterion]) -> None:
        """Makes room for the questions of other criteria. Raises CriticUnavailable where they are
        too long."""
        self.window_tokens = self._window_tokens(criteria)

    def with_room_for(self, criteria: Sequence[Criterion]) -> "Critic":
        """Returns the same critic with room for the questions of other criteria. Raises as
        `prepare`."""
        critic = copy(self)
        critic.prepare(criteria)
        return critic

    def _window_tokens(self, criteria: Sequence[Criterion]) -> int:
        # The base model's question is the longest: an adapter's style adds fewer tokens.
        base = self._format_of(self._style_of(None)).longest
        longest = max(base, self._criteria.longest(criteria))
        # One token is left for the label.
        window_tokens = self._max_model_len - longest - 1
        if window_tokens < longest:
            raise CriticUnavailable(
                f"The critique needs {longest} tokens of its own; a context of "
                f"{self._max_model_len} tokens leaves too little to judge. Raise --max-model-len."
            )
        return window_tokens

    def answer(
        self, prompt: dict[str, Any], prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Subject:
        """Returns an answer in its conversation.

        prompt: the engine input it was generated from (its multimodal parts are kept).
        answer_ids: its tokens, without the end mark.
        Raises CriticUnavailable when a multimodal conversation leaves no room for the question.
        """
        extras = non_text_parts(prompt)
        if len(prompt_ids) + len(answer_ids) <= self.window_tokens:
            pieces = ([*prompt_ids, *answer_ids],)
            return Subject("answer", pieces, extras, judged_ids=answer_ids)
        if extras.get("type") != "token":
            raise CriticUnavailable(
                "The conversation with its images leaves no room for the critique; "
                "ask for fewer tokens with max_tokens."
            )
        return self.answer_without_history(prompt, prompt_ids, answer_ids)

    def answer_without_history(
        self, prompt: dict[str, Any], prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Subject:
        """Returns an answer with the user turn it answers, without the earlier conversation. The
        parameters are those of `answer`."""
        pieces = tuple(self._windows_in_last_turn(prompt_ids, answer_ids))
        return Subject("answer", pieces, non_text_parts(prompt), judged_ids=answer_ids)

    def _windows_in_last_turn(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Iterator[list[int]]:
        """Yields the answer after its user turn alone, in windows of both where they are long. No
        earlier turn can hide the request from the critic."""
        limit = int(self.window_tokens * _CONTEXT_SHARE)
        turn = self._format.last_turn(prompt_ids)
        if turn is None or len(turn[0]) >= limit:
            contexts = [list(prompt_ids[-limit:])]
        else:
            frame, words = turn
            contexts = [
                frame.around(part) for part in overlapping_windows(words, limit - len(frame))
            ]
        for context in contexts:
            for piece in overlapping_windows(answer_ids, self.window_tokens - len(context)):
                yield [*context, *piece]

    def plan(
        self, group_size: int, stop_ids: Sequence[int], lora_request: LoRARequest | None
    ) -> CritiquePlan:
        """Returns the plan by which the answer's own session reads the critique's labels."""
        harm = self._format_of(self._style_of(lora_request)).harm
        return CritiquePlan(group_size, harm.after_answer, stop_ids, harm.labels.token_ids)

    def text(self, text_ids: Sequence[int]) -> Subject:
        """Returns a free-standing text."""
        pieces = tuple(overlapping_windows(text_ids, self.window_tokens))
        return Subject("text", pieces, {"type": "token"}, judged_ids=text_ids)

    async def judge(
        self,
        subject: Subject,
        *,
        categories_from: float,
        criteria: Sequence[Criterion] = (),
        label_logprobs: Mapping[int, float] | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> Verdict:
        """Returns the verdict on the decisive window. Categories are read when its harm reaches
        `categories_from`, a probability (0 for always).

        criteria: those that are read too, each on the window that is decisive for it.

        label_logprobs: what the answer's own session read already, instead of a new read.

        This is the paper's step 3, unguided: nothing in the prompt hints at the verdict.
        Raises CriticUnavailable when the engine fails or times out.
        """
        style = self._style_of(lora_request)
        engine_options = {"lora_request": lora_request, "priority": priority}
        reading = self._read_harm(
            subject, self._format_of(style), engine_options, categories_from, label_logprobs
        )
        if criteria:
            (harm, scores, reads), by_criterion = await asyncio.gather(
                reading, self._criteria.scores(subject, criteria, engine_options)
            )
        else:
            (harm, scores, reads), by_criterion = await reading, {}
        reads += [read for score in by_criterion.values() for read in score.reads]
        return Verdict(
            harm,
            scores,
            len(reads),
            sum((read.tokens for read in reads), TokensRead()),
            version_of(style),
            {name: score.probability for name, score in by_criterion.items()},
        )

    async def read_criteria(
        self,
        subject: Subject,
        criteria: Sequence[Criterion],
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> Verdict:
        """Returns a verdict by criteria alone: its harm is 0 and has no categories.

        Raises CriticUnavailable when the engine fails or times out.
        """
        options = {"lora_request": lora_request, "priority": priority}
        scores = await self._criteria.scores(subject, criteria, options)
        reads = [read for score in scores.values() for read in score.reads]
        return Verdict(
            0.0,
            None,
            len(reads),
            sum((read.tokens for read in reads), TokensRead()),
            version_of(self._style_of(lora_request)),
            {name: score.probability for name, score in scores.items()},
        )

    async def _read_harm(
        self,
        subject: Subject,
        questions: CritiqueFormat,
        engine_options: dict[str, Any],
        categories_from: float,
        label_logprobs: Mapping[int, float] | None,
    ) -> tuple[float, dict[str, float] | None, list[LabelRead]]:
        """Returns the harm, the categories' joint probabilities if they are read, and the reads."""
        if label_logprobs is not None:
            reads = [session_read(subject, questions.harm, label_logprobs)]
        else:
            reads = await self._reader.read(subject, questions.harm, engine_options)
        scales = self._scales_of(engine_options["lora_request"])
        scale = scales.of(is_answer=subject.kind == "answer")
        harms = [scale.apply(read.labels["yes"]) for read in reads]
        decisive = subject.decisive(harms)
        harm, scores = harms[decisive], None
        if harm >= categories_from:
            window = replace(subject, pieces=(subject.pieces[decisive],))
            reads += await self._reader.read(window, questions.category, engine_options)
            scores = {category: harm * share for category, share in reads[-1].labels.items()}
        return harm, scores, reads

    async def explain(
        self, subject: Subject, *, lora_request: LoRARequest | None = None
    ) -> Analysis:
        """Returns the unguided analysis in words, of the first window; its first word is the label.
        The analysis is not judged itself: judge it before releasing it.

        Raises CriticUnavailable when the engine fails or times out.
        """
        params = SamplingParams(
            temperature=0.0, max_tokens=_ANALYSIS_TOKENS, output_kind=RequestOutputKind.FINAL_ONLY
        )
        questions = self._format_of(self._style_of(lora_request))
        prompt = build_prompt(subject.pieces[0], subject, questions.analysis)
        outputs = self._engine.generate(
            prompt, params, f"critique-{uuid4().hex}", lora_request=lora_request
        )
        with raising_critic_unavailable():
            async with asyncio.timeout(self._timeout_s):
                (completion,) = [output.outputs[0] async for output in outputs]
        prompt_ids = prompt["prompt_token_ids"]
        as_answer = self.answer(prompt, prompt_ids, self._format.encode(completion.text))
        return Analysis(completion.text.strip(), as_answer)
