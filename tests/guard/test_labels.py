"""Label reads become probabilities, and only where the tokenizer allows it."""

import math
from typing import Any

import pytest

from guard.errors import CriticUnavailable, TemplateUnusable
from guard.labels import LabelSet, category_labels, harm_labels
from guard.verdict import CATEGORIES


def test_probabilities_are_normalised_over_all_spellings() -> None:
    labels = LabelSet({"yes": (1, 2), "no": (3,)})
    found = labels.probabilities({1: math.log(0.2), 2: math.log(0.1), 3: math.log(0.1)})
    assert found == pytest.approx({"yes": 0.75, "no": 0.25})


def test_tiny_probabilities_are_not_lost() -> None:
    found = LabelSet({"yes": (1,), "no": (2,)}).probabilities({1: -2000.0, 2: -2000.0})
    assert found == pytest.approx({"yes": 0.5, "no": 0.5})


def test_an_impossible_label_counts_as_nothing() -> None:
    found = LabelSet({"yes": (1,), "no": (2,)}).probabilities({1: -math.inf, 2: -3.0})
    assert found == {"yes": 0.0, "no": 1.0}


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
