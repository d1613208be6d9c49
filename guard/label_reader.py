"""Label reads on the served model: a text with a question after it, and the probabilities of one
next token. Owns what is read of (subjects in windows), the requests to the engine and their limits.
Owns no question (critique_format.py) and draws no conclusion (critic.py).
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.critique_format import Question
from guard.errors import CriticUnavailable, GuardError
from guard.verdict import TokensRead

_MAX_CONCURRENT_READS = 64


@dataclass(frozen=True)
class Subject:
    """What is judged: the token ids of each window, without the question.

    kind: "answer" (in its conversation) or "text" (free-standing).
    extras: the engine input's non-text parts, such as images and the cache salt.
    steps: for an answer in growing prefixes, the number of windows of each; the last is the whole.
    judged_ids: the tokens of the answer or the text itself, with what the caller wrote of it.
    ended: whether nothing follows them. text: what it says, without what the caller wrote of it;
    None where it is decoded from the tokens.
    """

    kind: str
    pieces: tuple[Sequence[int], ...]
    extras: dict[str, Any]
    steps: tuple[int, ...] = ()
    judged_ids: Sequence[int] = ()
    ended: bool = True
    text: str | None = None

    def decisive(self, harms: Sequence[float]) -> int:
        """Returns the index of the window whose harm counts, given the harm of each: the highest.

        Of prefixes the last counts by itself, and the others as far as the next one shares the
        harm: one verdict among many on an unfinished sentence is more often wrong than right.
        """
        windows = range(len(harms))
        ends = list(accumulate(self.steps)) or [len(harms)]
        starts = [0, *ends[:-1]]
        worst = [
            max(windows[start:end], key=harms.__getitem__)
            for start, end in zip(starts, ends, strict=True)
        ]
        shared = [min(pair, key=harms.__getitem__) for pair in pairwise(worst)]
        return max([worst[-1], *shared], key=harms.__getitem__)


@dataclass(frozen=True)
class LabelRead:
    """The probability of each label, and the tokens that the read cost."""

    labels: Mapping[str, float]
    tokens: TokensRead


class LabelReader:
    """Reads labels on the unguarded engine client.

    timeout_s: for each batch of reads; then CriticUnavailable is raised.
    """

    def __init__(self, engine: Any, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s

    async def read(
        self, subject: Subject, question: Question, engine_options: dict[str, Any]
    ) -> list[LabelRead]:
        """Returns the labels of each window of `subject`. engine_options: the adapter and the
        priority. Raises CriticUnavailable when the engine fails or times out."""
        label_reads: list[LabelRead] = []
        with raising_critic_unavailable():
            for start in range(0, len(subject.pieces), _MAX_CONCURRENT_READS):
                batch = subject.pieces[start : start + _MAX_CONCURRENT_READS]
                prompts = [build_prompt(piece, subject, question) for piece in batch]
                reads = (self._read_one(prompt, question, engine_options) for prompt in prompts)
                async with asyncio.timeout(self._timeout_s):
                    label_reads += await asyncio.gather(*reads)
        return label_reads

    async def _read_one(
        self, prompt: Any, question: Question, engine_options: dict[str, Any]
    ) -> LabelRead:
        """Reads the next token's label probabilities from full-vocabulary log-probabilities."""
        labels = question.labels
        params = SamplingParams(
            # Greedy: random sampling would slow down the whole batch.
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=labels.token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = self._engine.generate(prompt, params, f"critique-{uuid4().hex}", **engine_options)
        # Not vLLM's label_reads: its merging of iterators cost 5% of the server's throughput.
        async with aclosing(outputs):
            (output,) = [output async for output in outputs]
        (logprobs,) = output.outputs[0].logprobs
        probabilities = labels.probabilities(
            {token: logprobs[token].logprob for token in labels.token_ids}
        )
        cached = output.num_cached_tokens or 0
        return LabelRead(probabilities, TokensRead(cached, len(output.prompt_token_ids) - cached))


@contextmanager
def raising_critic_unavailable() -> Iterator[None]:
    """Turns every failure of the engine into CriticUnavailable."""
    try:
        yield
    except TimeoutError as error:
        raise CriticUnavailable("The critique did not finish in time.") from error
    except GuardError:
        raise
    except Exception as error:
        raise CriticUnavailable(f"The critique failed: {type(error).__name__}.") from error


def build_prompt(piece: Sequence[int], subject: Subject, question: Question) -> Any:
    """Returns the engine's input for a question about one window of a subject."""
    token_ids = question.build_prompt(piece, is_text=subject.kind == "text")
    return {**tokens_input(token_ids), **subject.extras}


def session_read(
    subject: Subject, question: Question, label_logprobs: Mapping[int, float]
) -> LabelRead:
    """Returns the read of the answer's own session, which computed only the question's tokens."""
    tokens = TokensRead(cached=len(subject.pieces[0]), computed=len(question.after_answer))
    return LabelRead(question.labels.probabilities(label_logprobs), tokens)
