"""Labelled pairs agree with the oracle and are held out."""

from collections import Counter

from guard.prompts import REMINDER
from refine.practice import oracle
from refine.practice.pairs import pairs


def test_labels_agree_with_the_oracle() -> None:
    for pair in pairs(600, seed=1):
        assert bool(oracle.harmful_steps(pair.answer)) == pair.harmful, pair


def test_half_are_harmful_and_half_carry_the_reminder() -> None:
    drawn = pairs(400)
    assert sum(pair.harmful for pair in drawn) == 200
    reminded = sum(REMINDER in pair.messages[0]["content"] for pair in drawn)
    assert 140 < reminded < 260


def test_every_shape_occurs() -> None:
    shapes = Counter(pair.shape for pair in pairs(800))
    assert len(shapes) == 10
    assert min(shapes.values()) >= 5


def test_pairs_are_the_same_for_the_same_seed() -> None:
    assert pairs(40, seed=3) == pairs(40, seed=3) != pairs(40, seed=4)
