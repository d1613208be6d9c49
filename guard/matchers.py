"""What is found in a text instead of read by the model: words, patterns, personal data, its length
and its languages. Owns how each is found, and what cannot be told yet while a text is still being
written. Does not parse them (criterion_file.py) or decide what follows (policy.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import re2

from guard.languages import languages_of, stretches
from guard.redact import Finding, Redactor

LONGEST = 100
"""How many characters a match has at most, unless the policy says otherwise."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no spaces between words."""
_BOUNDARY = rf"(?:[^\pL\pN_]|[{_UNSPACED}])"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACES = r"[\s\pZ]{1,4}"


@dataclass(frozen=True)
class WordMatcher:
    """Finds any of the words or phrases, whole, in capital or small letters."""

    words: tuple[str, ...]

    @property
    def longest(self) -> int:
        """At most how many characters a match has."""
        return max(len(word) + 3 * word.count(" ") for word in self.words)

    def findings(self, text: str) -> Iterator[Finding]:
        """Yields where words are in the text."""
        for match in self._expression.finditer(_searchable(text)):
            start, end = match.span(match.lastindex)
            yield Finding(start, end, "")

    @cached_property
    def _expression(self) -> Any:
        return compiled("(?i)" + "|".join(map(_whole_word, self.words)))


@dataclass(frozen=True)
class PatternMatcher:
    """Finds a regular expression in RE2's syntax, in time linear in the text.

    longest: how many characters a match has at most, which the operator knows. Raises ValueError
    for what is no expression, and for one that an empty text matches.
    """

    pattern: str
    longest: int = LONGEST

    def __post_init__(self) -> None:
        if self._expression.search(""):
            raise ValueError("it matches every text; write what has to be there")

    def findings(self, text: str) -> Iterator[Finding]:
        """Yields where matches are in the text."""
        for match in self._expression.finditer(_searchable(text)):
            yield Finding(match.start(), match.end(), "")

    @cached_property
    def _expression(self) -> Any:
        return compiled(self.pattern)


@dataclass(frozen=True)
class PersonalDataMatcher:
    """Finds personal data of some kinds.

    personal_data: the kinds, named as in redacted flags. phone_region: the country whose phone
    numbers are found without a country code.
    """

    personal_data: tuple[str, ...]
    phone_region: str | None = None

    @property
    def longest(self) -> int:
        """At most how many characters a match has."""
        return LONGEST

    def findings(self, text: str) -> Iterator[Finding]:
        """Yields where such data are in the text, by their kinds."""
        found = self._redactor.findings(text)
        return (finding for finding in found if finding.name in self.personal_data)

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(self.phone_region)


@dataclass(frozen=True)
class LengthMatcher:
    """Finds texts that are longer than a number of characters."""

    max_characters: int

    def applies(self, text: str, *, ended: bool) -> bool:
        """Whether the text is too long, which nothing that follows can change."""
        return len(text) > self.max_characters

    def undecided(self, text: str) -> int:
        """None of a text that is not too long yet."""
        return 0


@dataclass(frozen=True)
class LanguageMatcher:
    """Finds texts that are, as a whole or for a stretch, in none of the languages.

    languages: their codes of ISO 639-1.
    """

    languages: tuple[str, ...]

    def applies(self, text: str, *, ended: bool) -> bool:
        """Whether a stretch of the text is in another language."""
        return any(one not in self.languages for one in languages_of(text, ended=ended))

    def undecided(self, text: str) -> int:
        """How many characters at the end of an unfinished text have no language yet."""
        return sum(len(one.text) for one in stretches(text) if not one.complete)


SpanMatcher = WordMatcher | PatternMatcher | PersonalDataMatcher
"""Finds places in a text, which can be masked."""
TextMatcher = LengthMatcher | LanguageMatcher
"""Tells something of a text as a whole."""
Matcher = SpanMatcher | TextMatcher


def matches(matcher: Matcher, text: str, *, ended: bool) -> bool:
    """Whether the text has a match. At the end of a text that has not ended, none counts: the next
    character may undo it."""
    if isinstance(matcher, TextMatcher):
        return matcher.applies(text, ended=ended)
    return any(ended or finding.end < len(text) for finding in matcher.findings(text))


def undecided(matcher: Matcher, text: str) -> int:
    """Returns how many characters at the end of an unfinished text may belong to a match."""
    return matcher.undecided(text) if isinstance(matcher, TextMatcher) else matcher.longest


def _whole_word(word: str) -> str:
    """Returns an expression whose group is the word. A word that begins or ends with a letter has a
    boundary there."""
    spelled = _SPACES.join(map(re2.escape, word.split()))
    before = f"(?:^|{_BOUNDARY})" if _is_spaced(word[0]) else ""
    after = f"(?:$|{_BOUNDARY})" if _is_spaced(word[-1]) else ""
    return f"{before}({spelled}){after}"


def _searchable(text: str) -> str:
    """Returns the text as RE2 takes it: JSON in arguments may hold half of a surrogate pair."""
    return _SURROGATE.sub("\ufffd", text)


def _is_spaced(character: str) -> bool:
    """Whether it is a letter or a digit of a script that puts spaces between words."""
    return character.isalnum() and not compiled(f"[{_UNSPACED}]").search(character)


def compiled(expression: str) -> Any:
    """Returns a regular expression of RE2's. Raises ValueError for what is none."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(f"it is no regular expression of RE2's: {reason.decode()}") from None
