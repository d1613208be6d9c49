"""What the critic is shown: an answer whole, up to some of its tokens, or without the conversation
before; an input. Owns how each is cut out of a request. Judges nothing (judge.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guard.call import EngineRequest
from guard.critic import Critic
from guard.label_reader import Subject
from guard.template import ChatFormat
from guard.windows import Windows


@dataclass(frozen=True)
class Subjects:
    """Makes the subjects of critiques.

    windows: where an unfinished answer is judged.
    stop_ids: tokens that end an answer without being part of it.
    """

    critic: Critic
    chat_format: ChatFormat
    windows: Windows
    stop_ids: frozenset[int]

    def input(self, request: EngineRequest) -> tuple[Subject, int]:
        """Returns the conversation's open turn, or the whole prompt without known messages, and its
        number of characters."""
        text = request.call.open_turn or self.chat_format.decode(request.prompt_ids)
        return self.text(text), len(text)

    def text(self, text: str) -> Subject:
        """Returns a free-standing text."""
        return replace(self.critic.text(self.chat_format.encode(text)), text=text)

    def answer(
        self,
        request: EngineRequest,
        answer_ids: Sequence[int],
        *,
        without_history: bool = False,
        ended: bool = True,
    ) -> Subject:
        """Returns an answer in its conversation, or after its request alone. ended: whether all of
        it is there."""
        subject = self._answer(request, answer_ids, without_history=without_history)
        return replace(subject, ended=ended)

    def _answer(
        self, request: EngineRequest, answer_ids: Sequence[int], *, without_history: bool
    ) -> Subject:
        prompt, prompt_ids = request.prompt, request.prompt_ids
        answer_ids = self.without_stop(answer_ids)
        start = self.chat_format.reply_start(prompt_ids)
        if start is None:
            if prompt["type"] != "token":
                return self.critic.answer(prompt, prompt_ids, answer_ids)
            # A raw completion has no turn for a question to follow: judge its whole text.
            text = self.chat_format.decode([*prompt_ids, *answer_ids])
            return self.critic.text(self.chat_format.encode(text))
        # What the caller wrote of the answer is judged with it.
        prompt_ids, answer_ids = prompt_ids[:start], [*prompt_ids[start:], *answer_ids]
        if without_history and prompt["type"] == "token":
            return self.critic.answer_without_history(prompt, prompt_ids, answer_ids)
        return self.critic.answer(prompt, prompt_ids, answer_ids)

    def prefixes(
        self, request: EngineRequest, answer_ids: Sequence[int], ends: Sequence[int]
    ) -> Subject:
        """Returns an answer's prefixes up to each of `ends`, which is not empty. Each counts."""
        prefixes = [self.answer(request, answer_ids[:end], ended=False) for end in ends]
        return replace(prefixes[-1], pieces=_windows(prefixes))

    def steps(
        self,
        request: EngineRequest,
        answer_ids: Sequence[int],
        *,
        judged: int = 0,
        without_history: bool = False,
    ) -> Subject:
        """Returns an answer in doubt: its prefixes, in short steps from `judged` tokens on, and the
        whole. Each prefix counts as far as the next one agrees (Subject.decisive)."""
        length = len(answer_ids)
        ends = [end for end in self.windows.close_cuts(length) if end > judged]
        prefixes = [
            self.answer(request, answer_ids[:end], without_history=without_history)
            for end in (*ends, length)
        ]
        sizes = tuple(len(prefix.pieces) for prefix in prefixes)
        return replace(prefixes[-1], pieces=_windows(prefixes), steps=sizes)

    def cuts(self, answer_ids: Sequence[int], judged: int) -> list[int]:
        """Returns where else to judge the answer: its natural end, and often enough that no verdict
        covers too much."""
        inside = range(max(judged, 1), len(answer_ids) - 1)
        natural = next((end for end in inside if answer_ids[end] in self.stop_ids), None)
        cuts = set(self.windows.cuts(judged, len(answer_ids)))
        # With ignore_eos the model goes on after its end mark.
        return sorted(cuts if natural is None else cuts | {natural})

    def without_stop(self, answer_ids: Sequence[int]) -> Sequence[int]:
        """Returns the answer without the token that ended it."""
        ended = bool(answer_ids) and answer_ids[-1] in self.stop_ids
        return answer_ids[:-1] if ended else answer_ids


def _windows(prefixes: Sequence[Subject]) -> tuple[Sequence[int], ...]:
    return tuple(window for prefix in prefixes for window in prefix.pieces)
