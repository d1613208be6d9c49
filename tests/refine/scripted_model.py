"""A Model that follows a script, for tests of its callers. Owns the protocol's bookkeeping: a test
overrides what it needs of `reply` and `harm_of`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from refine.served import (
    GREEDY,
    Adapter,
    Conversation,
    GenerationParams,
    PolicyText,
    ServedVerdict,
)

ROLES = frozenset({"system", "user", "assistant"})


@dataclass
class ScriptedModel:
    """answer: from the last user turn. harmful: whether a text is harmful, by a word in it.

    requests: every turn that was answered, with its adapter. calls: every call, with its adapter
    and size. reminders: of the calls of answers().
    """

    answer: Callable[[str], str] = lambda turn: f"About: {turn}"
    harmful: Callable[[str], bool] = lambda text: "harm" in text
    requests: list[tuple[Adapter, str]] = field(default_factory=list)
    calls: list[tuple[str, Adapter, int]] = field(default_factory=list)
    reminders: list[bool] = field(default_factory=list)

    def reply(self, conversation: Conversation, adapter: Adapter) -> str:
        """The answer to one conversation."""
        return self.answer(conversation[-1]["content"])

    def harm_of(self, text: str, adapter: Adapter) -> float:
        """P(harmful) of an answer or a text."""
        return float(self.harmful(text))

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        params: GenerationParams = GREEDY,
    ) -> list[str]:
        """Answers by `reply`."""
        self.calls.append(("answers", adapter, len(conversations)))
        self.reminders.append(params.reminder)
        self.requests += [(adapter, turns[-1]["content"]) for turns in conversations]
        return [self.reply(conversation, adapter) for conversation in conversations]

    async def harm(
        self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
    ) -> list[float]:
        """Judges the last answers by `harm_of`."""
        self.calls.append(("harm", adapter, len(conversations)))
        return [self.harm_of(turns[-1]["content"], adapter) for turns in conversations]

    async def text_harm(self, texts: Sequence[str], *, adapter: Adapter) -> list[float]:
        """Judges by `harm_of`."""
        self.calls.append(("text harm", adapter, len(texts)))
        return [self.harm_of(text, adapter) for text in texts]

    def criteria_of(self, text: str, adapter: Adapter) -> dict[str, float]:
        """The probability that each criterion applies to an answer or a text."""
        return {}

    async def verdicts(
        self,
        kind: Literal["conversations", "texts"],
        items: Sequence[Any],
        *,
        adapter: Adapter,
        policy: PolicyText | None = None,
    ) -> list[ServedVerdict]:
        """Judges by `harm_of` and `criteria_of`, without categories."""
        self.calls.append(("verdicts", adapter, len(items)))
        texts = [item[-1]["content"] if kind == "conversations" else item for item in items]
        return [
            ServedVerdict(self.harm_of(text, adapter), {}, self.criteria_of(text, adapter))
            for text in texts
        ]

    async def lengths(self, conversations: Sequence[Conversation]) -> list[int | None]:
        """Counts a token per word; None for an unknown role."""
        return [_length(conversation) for conversation in conversations]


def _length(conversation: Conversation) -> int | None:
    if not {turn["role"] for turn in conversation} <= ROLES:
        return None
    return sum(len(turn["content"].split()) for turn in conversation)
