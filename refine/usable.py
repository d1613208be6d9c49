"""Whether what a model said is worth learning from, by its form alone: small models run in circles
or talk of something else. Judges no harm; critics and labels do.
"""

import re

_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 12
_NEW_SHARE = 0.6
_LONG = 5
_SHARED = 2


def runs_in_circles(text: str) -> bool:
    """Whether fewer than 60% of its sequences of three words are new ones."""
    words = _WORD.findall(text.lower())
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= _FEWEST_WORDS and len(set(threes)) < _NEW_SHARE * len(threes)


def is_about(text: str, subject: str) -> bool:
    """Whether it shares at least two longer words with the subject, or all that this has."""
    wanted = _long_words(subject)
    return len(_long_words(text) & wanted) >= min(_SHARED, len(wanted))


def _long_words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if len(word) >= _LONG}
