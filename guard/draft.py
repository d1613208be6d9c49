"""A model's answer while it is held back: collects the engine's pieces and lets them out again,
with withheld choices replaced. Decides nothing.
"""

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind


@dataclass
class Choice:
    """One choice of a draft, whole: its text and token ids, and whether it carries logprobs."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    has_logprobs: bool = False


@dataclass(frozen=True)
class Refusal:
    """What stands in for a withheld choice. token_ids spell `text`; `filler` pads the count."""

    text: str
    token_ids: tuple[int, ...]
    filler: int

    def instead_of(self, output: CompletionOutput, choice: Choice) -> CompletionOutput:
        """An output of `choice`'s true token count, so that usage stays real, without anything
        of its text, tokens or log-probabilities."""
        count = len(choice.token_ids)
        token_ids = [*self.token_ids[:count], *[self.filler] * (count - len(self.token_ids))]
        return CompletionOutput(
            index=output.index,
            text=self.text,
            token_ids=token_ids,
            cumulative_logprob=None,
            logprobs=[{t: Logprob(0.0, 1, "")} for t in token_ids] if choice.has_logprobs else None,
            finish_reason="content_filter",
            lora_request=output.lora_request,
        )


class Draft:
    """All pieces of one engine request, held back. `kind` is how the engine sends them."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._deltas = kind is RequestOutputKind.DELTA
        self._pieces: list[RequestOutput] = []
        self.choices: dict[int, Choice] = {}

    def add(self, piece: RequestOutput) -> None:
        """Takes the engine's next piece."""
        self._pieces.append(piece)
        for output in piece.outputs:
            choice = self.choices.setdefault(output.index, Choice(output.index))
            choice.has_logprobs = choice.has_logprobs or output.logprobs is not None
            if self._deltas:
                choice.text += output.text
                choice.token_ids += output.token_ids
            else:
                choice.text = output.text
                choice.token_ids = list(output.token_ids)

    def release(self, withheld: Collection[int], refusal: Refusal) -> Iterator[RequestOutput]:
        """The pieces in their order; of a `withheld` choice only a refusal, where it ended."""
        for piece in self._pieces:
            if not withheld:
                yield piece
                continue
            cleaned = copy(piece)
            cleaned.outputs = list(self._cleaned(piece.outputs, withheld, refusal))
            if cleaned.outputs or piece.finished:
                yield cleaned

    def _cleaned(
        self,
        outputs: Sequence[CompletionOutput],
        withheld: Collection[int],
        refusal: Refusal,
    ) -> Iterator[CompletionOutput]:
        for output in outputs:
            if output.index not in withheld:
                yield output
            elif output.finish_reason is not None:
                yield refusal.instead_of(output, self.choices[output.index])
