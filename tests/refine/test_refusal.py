"""Refusals are recognised by their first words."""

import pytest

from refine.refusal import is_refusal


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m really sorry, but no.",
        "Sorry for the confusion.",
        "I cannot provide instructions for this.",
        "That is a serious matter. I won't help with it, but a lawyer might.",
        "As an AI, I have no opinion.",
        "I must decline.",
    ],
)
def test_a_refusal(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Bread needs flour, water, yeast and salt.",
        "You can't help but smile at it.",
        "If he says that he is sorry, believe him.",
        "",
        "Mix the dough. " * 30 + "I'm sorry, but I can't help with that.",
    ],
)
def test_another_answer(answer: str) -> None:
    assert not is_refusal(answer)
