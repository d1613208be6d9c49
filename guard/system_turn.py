"""Puts words of the operator's into a prompt's system turn. Owns where that turn is in a prompt of
token ids, for chat templates with and without one. Owns no wording (prompts.py).

The system turn is the same for every request, so that what is put there stays in the prefix cache.
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
    """Where a chat template lets the operator speak, in token ids.

    opening: what a prompt with a system turn begins with, empty where there is none. end: the
    special token that ends its words. before, start, stop: what a prompt without a system turn
    begins with, and what goes after that, around the words of a new system turn.
    """

    opening: tuple[int, ...]
    end: int | None
    before: tuple[int, ...]
    start: str
    stop: str
    encode: Encode

    def with_words(self, prompt_ids: Sequence[int], words: str) -> list[int] | None:
        """`prompt_ids` with `words` at the end of the system turn, or in a new one where there is
        none; None where the prompt does not begin as the template lets a conversation begin."""
        if self.end is not None and self.opening and _starts(prompt_ids, self.opening):
            return self._appended(prompt_ids, self.end, words)
        if not _starts(prompt_ids, self.before):
            return None
        place = len(self.before)
        new = self.encode(self.start + words + self.stop)
        return [*prompt_ids[:place], *new, *prompt_ids[place:]]

    def _appended(self, prompt_ids: Sequence[int], end: int, words: str) -> list[int] | None:
        try:
            place = list(prompt_ids).index(end, len(self.opening))
        except ValueError:
            return None
        return [*prompt_ids[:place], *self.encode("\n\n" + words), *prompt_ids[place:]]


def system_turn(render: Render, encode: Encode, special: Callable[[int], bool]) -> SystemTurn:
    """Derives it from a chat template. A template without system turns puts the words before the
    first user turn's. special: whether a token is one that no text has."""
    user = {"role": "user", "content": _USER}
    plain = render([user])
    try:
        with_system = render([{"role": "system", "content": _SYSTEM}, user])
    except TemplateUnusable:
        with_system = ""
    head, found, rest = with_system.partition(_SYSTEM)
    tail, _, _ = rest.partition(_USER)
    end = next((token for token in encode(tail) if special(token)), None)
    # Only the first line: what follows may hold the date. Its last token may reach past it.
    line = encode(head.partition("\n")[0]) if found and end is not None else ()
    opening = tuple(os.path.commonprefix([line, encode(with_system)]))
    place = _place(plain, head, rest, encode) if opening else None
    if place is None:
        # Without a turn of their own, a system message's words stand before the user's.
        before = encode(plain.partition(_USER)[0])
        return SystemTurn(opening, end, before, "", "\n\n", encode)
    added = with_system[place : len(with_system) - len(plain) + place]
    start, _, stop = added.partition(_SYSTEM)
    return SystemTurn(opening, end, encode(plain[:place]), start, stop, encode)


def _place(plain: str, head: str, rest: str, encode: Encode) -> int | None:
    """After how many characters of a prompt without a system turn one can be put in, so that no
    token is split; None where there is no such place.

    head, rest: what stands before and after the words of a system turn.
    """
    first = len(plain) - len(os.path.commonprefix([plain[::-1], rest[::-1]]))
    last = len(os.path.commonprefix([plain, head]))
    whole = encode(plain)
    for place in range(first, last + 1):
        if encode(plain[:place]) + encode(plain[place:]) == whole:
            return place
    return None


def _starts(ids: Sequence[int], prefix: tuple[int, ...]) -> bool:
    return tuple(ids[: len(prefix)]) == prefix
