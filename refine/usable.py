"""Whether a model's answer is worth learning from, by its form alone: small models repeat
themselves or answer something else. Owns how a text is split into words. Judges no harm.
"""

import re
from collections import Counter

_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 12
_NEW_SHARE = 0.6
_LONG = 5
_SHARED = 2


def words(text: str) -> list[str]:
    """The words of a text, in lower case and in order."""
    return _WORD.findall(text.lower())


def repeats_itself(text: str) -> bool:
    """Whether fewer than 60% of the text's word trigrams are distinct; short texts never do."""
    said = words(text)
    trigrams = list(zip(said, said[1:], said[2:], strict=False))
    return len(said) >= _FEWEST_WORDS and len(set(trigrams)) < _NEW_SHARE * len(trigrams)


def is_about(text: str, subject: str) -> bool:
    """Whether the text shares at least two long words with the subject, or all if it has fewer."""
    wanted = _long_words(subject)
    return len(_long_words(text) & wanted) >= min(_SHARED, len(wanted))


def shared_words(one: str, other: str) -> float:
    """The F1 of two texts' words, in [0, 1], each word as often as it comes (ROUGE-1)."""
    counts = [Counter(words(text)) for text in (one, other)]
    total = sum(count.total() for count in counts)
    return 2 * (counts[0] & counts[1]).total() / total if total else 1.0


def _long_words(text: str) -> set[str]:
    return {word for word in words(text) if len(word) >= _LONG}
