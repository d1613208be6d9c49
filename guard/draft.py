"""A model's answer while it is held back. Owns the collected engine outputs and their release with
withheld choices replaced. Decides nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from guard.call import Replacement
from guard.tool_calls import Piece
from guard.vllm.session import take_label_logprobs

OutputReplacement = Callable[[CompletionOutput], CompletionOutput]
"""Returns what is sent instead of a choice's outputs, given the last one."""


@dataclass
class Choice:
    """One choice so far: its text and token ids, and whether it carries log-probabilities.

    pieces: the text and the tokens of each output. label_logprobs: of the critique's labels, if
    they came with the end of the answer.
    aborted: the engine aborted it, as it does with all requests when it shuts down.
    ended_at: when its last token came, by time.perf_counter().
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    has_logprobs: bool = False
    label_logprobs: Mapping[int, float] | None = None
    aborted: bool = False
    ended_at: float | None = None

    def add(self, delta: CompletionOutput) -> None:
        """Appends the next delta."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.pieces.append((delta.text, delta.token_ids))
        self.has_logprobs = self.has_logprobs or delta.logprobs is not None
        self.aborted = delta.finish_reason == "abort"
        if delta.finish_reason is not None:
            self.ended_at = time.perf_counter()

    def snapshot(self) -> "Choice":
        """Returns a copy that does not grow."""
        return replace(self, token_ids=list(self.token_ids), pieces=list(self.pieces))


def replacement_output(
    choice: Choice,
    replacement: Replacement,
    hidden_tokens: int,
    filler: int,
    *,
    partly_shown: bool = False,
) -> CompletionOutput:
    """Returns the last output of a withheld choice, without its text, tokens or log-probabilities.

    hidden_tokens: how many of its tokens no earlier output holds. This output holds as many, plus
    those generated for the replacement, so that usage stays correct; `filler` pads them.
    partly_shown: whether some of its text was released before.
    """
    count = hidden_tokens + replacement.tokens
    token_ids = [*replacement.token_ids[:count]]
    token_ids += [filler] * (count - len(token_ids))
    return CompletionOutput(
        index=choice.index,
        text=f"\n\n{replacement.text}" if partly_shown else replacement.text,
        token_ids=token_ids,
        cumulative_logprob=None,
        logprobs=blank_logprobs(token_ids) if choice.has_logprobs else None,
        finish_reason=replacement.finish_reason,
    )


def blank_logprobs(token_ids: Sequence[int]) -> list[dict[int, Logprob]]:
    """Returns log-probabilities of tokens that tell nothing but the tokens."""
    return [{token: Logprob(0.0, 1, "")} for token in token_ids]


class Draft:
    """All outputs of one engine request. kind: how the engine sends them."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._deltas = kind is RequestOutputKind.DELTA
        self._pieces: list[RequestOutput] = []
        self.choices: dict[int, Choice] = {}

    def add(self, piece: RequestOutput) -> None:
        """Appends the engine's next output."""
        label_logprobs = take_label_logprobs(piece)
        self._pieces.append(piece)
        for output in piece.outputs:
            if not self._deltas:
                self.choices.pop(output.index, None)
            choice = self.choices.setdefault(output.index, Choice(output.index))
            choice.add(output)
            choice.label_logprobs = label_logprobs

    def release(self, replaced: Mapping[int, OutputReplacement]) -> Iterator[RequestOutput]:
        """Yields the outputs in order. A choice in `replaced` has one output, where it ended: what
        its function returns for its last one."""
        for piece in self._pieces:
            if not replaced:
                yield piece
                continue
            cleaned = copy(piece)
            cleaned.outputs = list(_replaced(piece.outputs, replaced))
            if cleaned.outputs or piece.finished:
                yield cleaned


def _replaced(
    outputs: Sequence[CompletionOutput],
    replaced: Mapping[int, OutputReplacement],
) -> Iterator[CompletionOutput]:
    for output in outputs:
        if output.index not in replaced:
            yield output
        elif output.finish_reason is not None:
            yield replaced[output.index](output)
