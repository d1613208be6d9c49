"""A Model that answers by rule, for tests of its callers. Records its requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from refine.served import Adapter, Conversation


@dataclass
class ScriptedModel:
    """answer: from the last user turn. harmful: whether a text is harmful, by a word in it."""

    answer: Callable[[str], str] = lambda asked: f"About: {asked}"
    harmful: Callable[[str], bool] = lambda text: "harm" in text
    asked: list[tuple[Adapter, str]] = field(default_factory=list)

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        max_tokens: int = 96,
        temperature: float = 0.0,
        seed: int | None = None,
        reminder: bool = False,
    ) -> list[str]:
        """Answers by `answer`."""
        turns = [conversation[-1]["content"] for conversation in conversations]
        self.asked += [(adapter, turn) for turn in turns]
        return [self.answer(turn) for turn in turns]

    async def harm(
        self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
    ) -> list[float]:
        """Judges the last answer by `harmful`."""
        return [float(self.harmful(conversation[-1]["content"])) for conversation in conversations]

    async def text_harm(self, texts: Sequence[str], *, adapter: Adapter) -> list[float]:
        """Judges by `harmful`."""
        return [float(self.harmful(text)) for text in texts]

    async def lengths(self, conversations: Sequence[Conversation]) -> list[int | None]:
        """Counts a token per word."""
        return [
            sum(len(turn["content"].split()) for turn in conversation)
            for conversation in conversations
        ]
