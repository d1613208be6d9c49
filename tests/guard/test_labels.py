"""Label reads become probabilities, if the tokenizer allows it."""

import math
from typing import Any, ClassVar

import pytest

from guard.errors import CriticUnavailable, TemplateUnusable
from guard.labels import LabelSet, category_labels, harm_labels
from guard.prompts import CritiqueForm
from guard.verdict import CATEGORIES


def test_probabilities_are_normalised_over_all_spellings() -> None:
    labels = LabelSet({"yes": (1, 2), "no": (3,)})
    probabilities = labels.probabilities({1: math.log(0.2), 2: math.log(0.1), 3: math.log(0.1)})
    assert probabilities == pytest.approx({"yes": 0.75, "no": 0.25})


def test_tiny_probabilities_are_not_lost() -> None:
    probabilities = LabelSet({"yes": (1,), "no": (2,)}).probabilities({1: -2000.0, 2: -2000.0})
    assert probabilities == pytest.approx({"yes": 0.5, "no": 0.5})


def test_an_impossible_label_counts_as_nothing() -> None:
    probabilities = LabelSet({"yes": (1,), "no": (2,)}).probabilities({1: -math.inf, 2: -3.0})
    assert probabilities == {"yes": 0.0, "no": 1.0}


def test_no_label_possible_is_a_failure_not_a_verdict() -> None:
    with pytest.raises(CriticUnavailable):
        LabelSet({"yes": (1,), "no": (2,)}).probabilities({1: -math.inf, 2: -math.inf})


def test_the_practice_tokenizer_spells_every_label(tokenizer: Any) -> None:
    harm = harm_labels(tokenizer)
    assert set(harm.tokens) == {"yes", "no"}
    assert not set(harm.tokens["yes"]) & set(harm.tokens["no"])
    assert tuple(category_labels(tokenizer).tokens) == CATEGORIES


def test_a_tokenizer_without_the_labels_is_refused() -> None:
    class Letters:
        def encode(self, text: str, **_options: Any) -> list[int]:
            return [ord(char) for char in text]

    letters: Any = Letters()
    with pytest.raises(TemplateUnusable, match="yes, no"):
        harm_labels(letters)


WORDS = CritiqueForm("", "It is very", ("bad", "cruel"), ("nice", "unheard"), (0.5, 1.0))


class Words:
    """A tokenizer of whole words after a space; other words are spelled in letters."""

    known: ClassVar = {" bad": 1, " cruel": 2, " nice": 3}

    def encode(self, text: str, **_options: Any) -> list[int]:
        return [self.known[text]] if text in self.known else [ord(char) for char in text]


def test_labels_after_a_reply_prefix_use_the_mean_over_their_words() -> None:
    words: Any = Words()
    labels = harm_labels(words, WORDS)
    assert labels.tokens == {"yes": (1, 2), "no": (3,)}
    probabilities = labels.probabilities({1: -2.0, 2: -4.0, 3: -1.0})
    assert probabilities["yes"] == pytest.approx(1 / (1 + math.exp(-(0.5 * (-3.0 + 1.0) + 1.0))))
    assert sum(probabilities.values()) == pytest.approx(1.0)


def test_one_impossible_word_of_many_does_not_decide_alone() -> None:
    words: Any = Words()
    probabilities = harm_labels(words, WORDS).probabilities({1: -2.0, 2: -math.inf, 3: -1.0})
    assert 0.0 < probabilities["yes"] < 0.01
    with pytest.raises(CriticUnavailable):
        harm_labels(words, WORDS).probabilities(dict.fromkeys((1, 2, 3), -math.inf))
