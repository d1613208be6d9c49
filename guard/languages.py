"""The languages of a text, identified by py3langid's model, which is small and needs no network.
Owns how a text is cut into pieces for it, and which of its answers count. Does not own which
languages a policy allows (matchers.py).

Does not identify short texts, and does not look into code blocks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

STRETCH_LETTERS = 100
"""How many letters a stretch has. Each is identified by itself, so that a streamed answer can be
judged before it ends."""
MIN_LETTERS = 20
"""A shorter stretch has no language. Of 210 pieces of this length in 21 languages none was taken
for another language with _CONFIDENCE; of 430 pieces of 10 letters one was."""
_CONFIDENCE = 0.7
"""A less probable language does not count."""
_NO_LANGUAGE = "zxx"
_CODE_BLOCK = re.compile(r"^ {0,3}```[^\n]*(?:\n.*?(?:^ {0,3}```[^\n]*$|\Z)|\Z)", re.M | re.S)


@dataclass(frozen=True)
class Stretch:
    """A piece of a text. end: where it ends there. complete: whether it stays as it is, whatever
    follows."""

    text: str
    end: int
    complete: bool


def known_languages() -> frozenset[str]:
    """Returns the languages that are told apart, by their codes of ISO 639-1."""
    return frozenset(_identifier().labels) - {_NO_LANGUAGE}


def languages_of(text: str, *, ended: bool) -> Iterator[str]:
    """Yields the language of each stretch that has one for certain. Of a text that has not ended,
    only stretches that are complete count."""
    for stretch in stretches(text):
        if (ended or stretch.complete) and (language := _identified(stretch.text)):
            yield language


def stretches(text: str) -> Iterator[Stretch]:
    """Yields the text between blocks of code, cut after every STRETCH_LETTERS letters."""
    start = 0
    for block in _CODE_BLOCK.finditer(text):
        yield from _cut(text, start, block.start(), closed=True)
        start = block.end()
    yield from _cut(text, start, len(text), closed=False)


def _cut(text: str, start: int, end: int, *, closed: bool) -> Iterator[Stretch]:
    letters = 0
    for position in range(start, end):
        letters += text[position].isalpha()
        if letters == STRETCH_LETTERS:
            yield Stretch(text[start : position + 1], position + 1, True)
            start, letters = position + 1, 0
    if start < end:
        yield Stretch(text[start:end], end, closed)


def _identified(text: str) -> str | None:
    """Returns the language, None for too few letters, no language or no certainty."""
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return None
    language, confidence = _identifier().classify(text)
    return language if confidence >= _CONFIDENCE and language != _NO_LANGUAGE else None


@cache
def _identifier() -> Any:
    # Loading it takes a second and 100 MB, which only a policy that needs it should cost.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Policies name languages by ISO 639-1; a dialect without a code goes to the nearest of these.
    codes = [label for label in identifier.labels if len(label) == 2]
    identifier.set_languages([*codes, _NO_LANGUAGE])
    return identifier
