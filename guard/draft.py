"""A model's answer while it is held back: collects the engine's pieces and lets them out again,
with withheld choices replaced. Decides nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from guard.call import Replacement
from guard.vllm.session import taken_reply


@dataclass
class Choice:
    """One choice of a draft so far: its text and token ids, and whether it carries logprobs.

    read: log-probabilities of the critique's labels, once they came with the end of the answer.
    aborted: the engine gave it up, as it does with all answers when it is stopped.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    has_logprobs: bool = False
    read: Mapping[int, float] | None = None
    aborted: bool = False

    def add(self, delta: CompletionOutput) -> None:
        """Takes what comes next of it."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.has_logprobs = self.has_logprobs or delta.logprobs is not None
        self.aborted = delta.finish_reason == "abort"

    def so_far(self) -> "Choice":
        """A copy that does not grow."""
        return replace(self, token_ids=list(self.token_ids))


def instead_of(
    choice: Choice, replacement: Replacement, hidden: int, filler: int, *, shown: bool = False
) -> CompletionOutput:
    """The end of a withheld choice, without anything of its text, tokens or log-probabilities.

    hidden: how many of its tokens no earlier output holds. As many, and those generated for the
    replacement, are in this one, so that usage stays real; `filler` pads them.
    shown: whether some of its text was let out before.
    """
    count = hidden + replacement.tokens
    token_ids = [*replacement.token_ids[:count]]
    token_ids += [filler] * (count - len(token_ids))
    return CompletionOutput(
        index=choice.index,
        text=f"\n\n{replacement.text}" if shown else replacement.text,
        token_ids=token_ids,
        cumulative_logprob=None,
        logprobs=[{t: Logprob(0.0, 1, "")} for t in token_ids] if choice.has_logprobs else None,
        finish_reason="content_filter",
    )


class Draft:
    """All pieces of one engine request, held back. `kind` is how the engine sends them."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._deltas = kind is RequestOutputKind.DELTA
        self._pieces: list[RequestOutput] = []
        self.choices: dict[int, Choice] = {}

    def add(self, piece: RequestOutput) -> None:
        """Takes the engine's next piece."""
        read = taken_reply(piece)
        self._pieces.append(piece)
        for output in piece.outputs:
            if not self._deltas:
                self.choices.pop(output.index, None)
            choice = self.choices.setdefault(output.index, Choice(output.index))
            choice.add(output)
            choice.read = read

    def release(self, withheld: Mapping[int, Replacement], filler: int) -> Iterator[RequestOutput]:
        """The pieces in their order; of what is `withheld` only its replacement, where it ended."""
        for piece in self._pieces:
            if not withheld:
                yield piece
                continue
            cleaned = copy(piece)
            cleaned.outputs = list(self._cleaned(piece.outputs, withheld, filler))
            if cleaned.outputs or piece.finished:
                yield cleaned

    def _cleaned(
        self,
        outputs: Sequence[CompletionOutput],
        withheld: Mapping[int, Replacement],
        filler: int,
    ) -> Iterator[CompletionOutput]:
        for output in outputs:
            if output.index not in withheld:
                yield output
            elif output.finish_reason is not None:
                choice = self.choices[output.index]
                yield instead_of(choice, withheld[output.index], len(choice.token_ids), filler)
