"""A stored flag in the form that the refine loop uses: its conversation and answer as plain text.
Owns the conversion. Chooses nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from guard.store.flags import StoredFlag


@dataclass(frozen=True)
class FlaggedCase:
    """A flag in the form that the refine loop uses.

    messages: the conversation up to and including its last user turn, as plain text.
    revision: the guard's revision that was sent instead of the answer, or None.
    correction: a reviewer's corrected answer, or None.
    """

    flag_id: int
    messages: tuple[Mapping[str, str], ...]
    answer: str
    category: str
    revision: str | None = None
    correction: str | None = None

    @property
    def request(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


def case_of(flag: StoredFlag) -> FlaggedCase | None:
    """Converts a flag; returns None if a turn or the answer is not text."""
    messages = [_message(message) for message in flag.messages]
    texts = [message for message in messages if message is not None]
    if len(texts) < len(messages) or not texts or not flag.answer:
        return None
    answer = flag.answer
    if texts[-1]["role"] == "assistant":
        # The caller wrote the beginning of the answer.
        answer = texts.pop()["content"] + answer
    if not texts or texts[-1]["role"] != "user":
        return None
    # Categories come before criteria.
    category = flag.corrected_category or flag.categories[0]
    correction = flag.corrected_answer or None
    return FlaggedCase(flag.id, tuple(texts), answer, category, flag.revision, correction)


def _message(message: Mapping[str, object]) -> Mapping[str, str] | None:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        return None
    return {"role": role, "content": content}
