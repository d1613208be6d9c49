"""Whether a model's answer is good enough to train on, judged by its form: small models repeat
themselves, decline or miss the topic. Owns how a text is split into words. Does not judge harm.
"""

import re
from collections import Counter

from refine.refusal import is_refusal

_WORD = re.compile(r"\w+")
_MIN_WORDS = 12
_MIN_DISTINCT_SHARE = 0.6
_LONG_WORD = 5
_MIN_SHARED_WORDS = 2


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case and in order."""
    return _WORD.findall(text.lower())


def repeats_itself(text: str) -> bool:
    """Whether fewer than 60% of the text's word trigrams are distinct; short texts never do."""
    words_ = words(text)
    trigrams = list(zip(words_, words_[1:], words_[2:], strict=False))
    return len(words_) >= _MIN_WORDS and len(set(trigrams)) < _MIN_DISTINCT_SHARE * len(trigrams)


def helps(answer: str) -> bool:
    """Whether an answer is not empty, does not repeat itself and does not decline."""
    return bool(answer.strip()) and not repeats_itself(answer) and not is_refusal(answer)


def is_about(text: str, subject: str) -> bool:
    """Whether the text shares two long words with the subject, or all if the subject has fewer."""
    subject_words = _long_words(subject)
    return len(_long_words(text) & subject_words) >= min(_MIN_SHARED_WORDS, len(subject_words))


def shared_words(text_a: str, text_b: str) -> float:
    """Returns the F1 score of two texts' word counts (ROUGE-1), in [0, 1]."""
    counts = [Counter(words(content)) for content in (text_a, text_b)]
    total = sum(count.total() for count in counts)
    return 2 * (counts[0] & counts[1]).total() / total if total else 1.0


def _long_words(text: str) -> set[str]:
    return {word for word in words(text) if len(word) >= _LONG_WORD}
