"""Adds text to a prompt's system turn. Owns where that turn is in a prompt of token ids, for chat
templates with and without one. Owns no wording (prompts.py).

The system turn is the same for every request, so what is added there stays in the prefix cache.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guard.errors import TemplateUnusable

_SYSTEM = "SETBACKSYSTEM"
_USER = "SETBACKUSER"

Render = Callable[[list[dict[str, str]]], str]
Encode = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class SystemTurn:
    """A chat template's system turn, in token ids.

    opening: the start of a prompt with a system turn; empty if the template has none.
    end: the special token that ends the system turn. before: the start of a prompt without a
    system turn. start, stop: what encloses the words of a new system turn, after `before`.
    """

    opening: tuple[int, ...]
    end: int | None
    before: tuple[int, ...]
    start: str
    stop: str
    encode: Encode

    def with_words(self, prompt_ids: Sequence[int], words: str) -> list[int] | None:
        """Returns the prompt with `words` at the end of its system turn, or in a new one where it
        has none. Returns None when the prompt does not begin as the template's prompts do."""
        if self.end is not None and self.opening and _starts(prompt_ids, self.opening):
            return self._append_to_system_turn(prompt_ids, self.end, words)
        if not _starts(prompt_ids, self.before):
            return None
        position = len(self.before)
        turn_ids = self.encode(self.start + words + self.stop)
        return [*prompt_ids[:position], *turn_ids, *prompt_ids[position:]]

    def _append_to_system_turn(
        self, prompt_ids: Sequence[int], end: int, words: str
    ) -> list[int] | None:
        try:
            position = list(prompt_ids).index(end, len(self.opening))
        except ValueError:
            return None
        return [*prompt_ids[:position], *self.encode("\n\n" + words), *prompt_ids[position:]]


def system_turn(render: Render, encode: Encode, is_special: Callable[[int], bool]) -> SystemTurn:
    """Derives the system turn from a chat template. A template without one puts the words before
    the first user turn's. is_special: whether a token is a special one, which no text has."""
    user = {"role": "user", "content": _USER}
    plain = render([user])
    try:
        with_system = render([{"role": "system", "content": _SYSTEM}, user])
    except TemplateUnusable:
        with_system = ""
    head, has_system_turn, rest = with_system.partition(_SYSTEM)
    tail, _, _ = rest.partition(_USER)
    end = next((token for token in encode(tail) if is_special(token)), None)
    # Only the first line: later ones may hold the date. Its last token may span the line's end.
    line = encode(head.partition("\n")[0]) if has_system_turn and end is not None else ()
    opening = tuple(os.path.commonprefix([line, encode(with_system)]))
    position = _insertion_point(plain, head, rest, encode) if opening else None
    if position is None:
        # Without a turn of its own, a system message is prepended to the user's.
        before = encode(plain.partition(_USER)[0])
        return SystemTurn(opening, end, before, "", "\n\n", encode)
    added = with_system[position : len(with_system) - len(plain) + position]
    start, _, stop = added.partition(_SYSTEM)
    return SystemTurn(opening, end, encode(plain[:position]), start, stop, encode)


def _insertion_point(plain: str, head: str, rest: str, encode: Encode) -> int | None:
    """Returns the character position in a prompt without a system turn where one can be inserted
    without splitting a token, or None if there is none.

    head, rest: what the template renders before and after a system turn's words.
    """
    lowest = len(plain) - len(os.path.commonprefix([plain[::-1], rest[::-1]]))
    highest = len(os.path.commonprefix([plain, head]))
    plain_ids = encode(plain)
    for position in range(lowest, highest + 1):
        if encode(plain[:position]) + encode(plain[position:]) == plain_ids:
            return position
    return None


def _starts(ids: Sequence[int], prefix: tuple[int, ...]) -> bool:
    return tuple(ids[: len(prefix)]) == prefix
