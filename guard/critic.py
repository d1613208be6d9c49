"""The self-critique: reads, from the served model itself, whether a text is harmful and how.
Owns the prompts' assembly in token ids, the label reads and their windows. Does not decide what
follows from a verdict (policy.py) and stores nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.calibration import UNCALIBRATED, Calibration
from guard.call import parts_besides_words
from guard.critique_format import Question, critique_format
from guard.errors import CriticUnavailable, GuardError
from guard.prompts import CritiqueStyle, version_of
from guard.template import ChatFormat, Tokenizer
from guard.verdict import TokensRead, Verdict
from guard.vllm.session import Wishes
from guard.windows import windows

_READS_AT_ONCE = 64
_ANALYSIS_TOKENS = 128
_CONTEXT_SHARE = 0.5


@dataclass(frozen=True)
class Subject:
    """What is judged: the token ids of each window, not yet followed by a question.

    kind: "answer" (in its conversation) or "text" (free-standing).
    extras: the engine input's other parts, such as images and the cache salt.
    """

    kind: str
    pieces: tuple[Sequence[int], ...]
    extras: dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """What the critic says of a subject, and that saying as an answer to be judged in turn."""

    text: str
    subject: Subject


@dataclass(frozen=True)
class _Read:
    """The probability of each label, and what reading them took."""

    labels: Mapping[str, float]
    tokens: TokensRead


class Critic:
    """Judges answers and texts by one-token label reads on the served model.

    engine: the unguarded engine client. max_model_len: its context in tokens.
    timeout_s: for each round of reads, after which CriticUnavailable is raised.
    style_of, scale_of: how verdicts are read of an adapter, or of the base (None), and from what it
    says to a probability.
    room: how many tokens of what is judged one window holds.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        max_model_len: int,
        timeout_s: float,
        style_of: Callable[[LoRARequest | None], CritiqueStyle] = lambda _: CritiqueStyle.YES_NO,
        scale_of: Callable[[LoRARequest | None], Calibration] = lambda _: UNCALIBRATED,
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self._timeout_s = timeout_s
        self._style_of = style_of
        self._scale_of = scale_of
        # No style is refused before an adapter asks for it.
        self._format_of = cache(lambda style: critique_format(style, tokenizer, chat_format))
        # An adapter's style adds less than the base's question in words.
        longest = self._format_of(style_of(None)).longest
        # One more token is the label itself.
        self.room = max_model_len - longest - 1
        if self.room < longest:
            raise CriticUnavailable(
                f"The critique needs {longest} tokens of its own; a context of {max_model_len} "
                "tokens leaves too little to judge. Raise --max-model-len."
            )

    def answer(
        self, prompt: dict[str, Any], prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Subject:
        """An answer in its conversation.

        prompt: the engine input it was generated from (its multimodal parts are kept).
        answer_ids: its tokens, without the end mark.
        Raises CriticUnavailable when a multimodal conversation leaves no room for the question.
        """
        extras = parts_besides_words(prompt)
        if len(prompt_ids) + len(answer_ids) <= self.room:
            return Subject("answer", ([*prompt_ids, *answer_ids],), extras)
        if extras.get("type") != "token":
            raise CriticUnavailable(
                "The conversation with its images leaves no room for the critique; "
                "ask for fewer tokens with max_tokens."
            )
        return self.answer_alone(prompt, prompt_ids, answer_ids)

    def answer_alone(
        self, prompt: dict[str, Any], prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Subject:
        """An answer after the user turn that it answers, without the conversation before; see
        `answer`."""
        pieces = tuple(self._in_last_turn(prompt_ids, answer_ids))
        return Subject("answer", pieces, parts_besides_words(prompt))

    def _in_last_turn(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int]
    ) -> Iterator[list[int]]:
        """The answer after nothing but the user turn that it answers, in windows of both where they
        are long: whatever came before does not keep the request from being seen."""
        limit = int(self.room * _CONTEXT_SHARE)
        turn = self._format.last_turn(prompt_ids)
        if turn is None or len(turn[0]) >= limit:
            contexts = [list(prompt_ids[-limit:])]
        else:
            frame, words = turn
            contexts = [frame.around(part) for part in windows(words, limit - len(frame))]
        for context in contexts:
            for piece in windows(answer_ids, self.room - len(context)):
                yield [*context, *piece]

    def wishes(self, every: int, ends: Sequence[int], lora_request: LoRARequest | None) -> Wishes:
        """What makes an answer's own session read the critique's labels; see Wishes."""
        harm = self._format_of(self._style_of(lora_request)).harm
        return Wishes(every, harm.after_answer, ends, harm.labels.token_ids)

    def text(self, text_ids: Sequence[int]) -> Subject:
        """A free-standing text."""
        return Subject("text", tuple(windows(text_ids, self.room)), {"type": "token"})

    async def judge(
        self,
        subject: Subject,
        *,
        categories_from: float,
        read: Mapping[int, float] | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> Verdict:
        """The verdict on the worst window; categories are read when its harm reaches
        `categories_from`, a probability (0 for always).

        read: what the answer's own session read of the labels, which then is not read again.

        The paper's step 3, unguided: nothing in the prompt hints at the verdict.
        Raises CriticUnavailable when the engine fails or is too slow.
        """
        style = self._style_of(lora_request)
        asked = self._format_of(style)
        engine_options = {"lora_request": lora_request, "priority": priority}
        if read is not None:
            reads = [_in_session(subject, asked.harm, read)]
        else:
            reads = await self._read(subject, asked.harm, engine_options)
        scale = self._scale_of(lora_request)
        harms = [scale.apply(each.labels["yes"]) for each in reads]
        worst = max(range(len(harms)), key=harms.__getitem__)
        harm, scores = harms[worst], None
        if harm >= categories_from:
            window = replace(subject, pieces=(subject.pieces[worst],))
            reads += await self._read(window, asked.category, engine_options)
            scores = {category: harm * share for category, share in reads[-1].labels.items()}
        tokens = sum((each.tokens for each in reads), TokensRead())
        return Verdict(harm, scores, len(reads), tokens, version_of(style))

    async def explain(
        self, subject: Subject, *, lora_request: LoRARequest | None = None
    ) -> Analysis:
        """The unguided analysis in words, of the first window: what the label read is the first
        word of. Not itself judged: the caller must, before letting it out.

        Raises CriticUnavailable when the engine fails or is too slow.
        """
        params = SamplingParams(
            temperature=0.0, max_tokens=_ANALYSIS_TOKENS, output_kind=RequestOutputKind.FINAL_ONLY
        )
        asked = self._format_of(self._style_of(lora_request))
        prompt = _prompt(subject.pieces[0], subject, asked.analysis)
        outputs = self._engine.generate(
            prompt, params, f"critique-{uuid4().hex}", lora_request=lora_request
        )
        with _as_critic_failure():
            async with asyncio.timeout(self._timeout_s):
                (said,) = [output.outputs[0] async for output in outputs]
        prompt_ids = prompt["prompt_token_ids"]
        as_answer = self.answer(prompt, prompt_ids, self._format.encode(said.text))
        return Analysis(said.text.strip(), as_answer)

    async def _read(
        self, subject: Subject, question: Question, engine_options: dict[str, Any]
    ) -> list[_Read]:
        """What is read of each window of `subject`."""
        found: list[_Read] = []
        with _as_critic_failure():
            for start in range(0, len(subject.pieces), _READS_AT_ONCE):
                batch = subject.pieces[start : start + _READS_AT_ONCE]
                asked = [_prompt(piece, subject, question) for piece in batch]
                reads = (self._read_one(each, question, engine_options) for each in asked)
                async with asyncio.timeout(self._timeout_s):
                    found += await asyncio.gather(*reads)
        return found

    async def _read_one(
        self, prompt: Any, question: Question, engine_options: dict[str, Any]
    ) -> _Read:
        """Label probabilities of the next token, over the full vocabulary's log-probabilities."""
        labels = question.labels
        params = SamplingParams(
            # Greedy: sampling at random would cost the whole batch.
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=labels.token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = self._engine.generate(prompt, params, f"critique-{uuid4().hex}", **engine_options)
        # Not by vLLM's label_reads: its merging of iterators cost 5% of the server's throughput.
        async with aclosing(outputs):
            (output,) = [output async for output in outputs]
        (logprobs,) = output.outputs[0].logprobs
        found = labels.probabilities({token: logprobs[token].logprob for token in labels.token_ids})
        cached = output.num_cached_tokens or 0
        return _Read(found, TokensRead(cached, len(output.prompt_token_ids) - cached))


@contextmanager
def _as_critic_failure() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise CriticUnavailable("The critique did not finish in time.") from error
    except GuardError:
        raise
    except Exception as error:
        raise CriticUnavailable(f"The critique failed: {type(error).__name__}.") from error


def _prompt(piece: Sequence[int], subject: Subject, question: Question) -> Any:
    token_ids = question.put(piece, is_text=subject.kind == "text")
    return {**tokens_input(token_ids), **subject.extras}


def _in_session(subject: Subject, question: Question, read: Mapping[int, float]) -> _Read:
    """What the answer's session read: only the question came after the answer."""
    tokens = TokensRead(cached=len(subject.pieces[0]), computed=len(question.after_answer))
    return _Read(question.labels.probabilities(read), tokens)
