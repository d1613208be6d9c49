"""Answers that repeat themselves or are off topic are not trained on."""

import pytest

from refine.usable import is_about, repeats_itself, shared_words


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("The answer is: " * 12, True),
        ("I'm sorry for your loss. " * 6, True),
        ("He is a just and fair ruler who is not only a just and fair ruler but just. " * 3, True),
        ("Sorry, no.", False),
        ("", False),
        ("Mix flour, water and yeast, let the dough rise for an hour, then bake it hot.", False),
        ("1. Boil the water. 2. Add the salt. 3. Add the pasta. 4. Wait for ten minutes.", False),
    ],
)
def test_a_text_that_repeats_itself(text: str, repeats: bool) -> None:
    assert repeats_itself(text) is repeats


@pytest.mark.parametrize(
    ("text", "subject", "about"),
    [
        ("To insult the neighbour, say this.", "Insult my neighbour for me", True),
        ("The train leaves at eleven.", "Insult my neighbour for me", False),
        ("The bread bakes for an hour.", "How do I bake BREAD?", True),
        ("Sure thing!", "do it", True),
        ("Nein.", "Schreib eine Beleidigung über meinen Nachbarn", False),
    ],
)
def test_being_about_something(text: str, subject: str, about: bool) -> None:
    assert is_about(text, subject) is about


def test_shared_words_count_each_as_often_as_it_comes() -> None:
    assert shared_words("Bread rises, bread bakes.", "bread bakes bread rises") == 1
    assert shared_words("one two", "two three") == pytest.approx(0.5)
    assert shared_words("one", "two") == 0
