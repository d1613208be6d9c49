"""Languages are identified with certainty or not at all, and alike in a text that is not whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.languages import MIN_LETTERS, STRETCH_LETTERS, known_languages, languages_of, stretches

DATA = json.loads(Path(__file__).with_name("languages.json").read_text("utf-8"))
SENTENCES: dict[str, list[str]] = DATA["sentences"]
CODE: list[str] = DATA["code"]
GERMAN, ENGLISH = (" ".join(SENTENCES[language]) for language in ("de", "en"))


def languages(text: str, *, ended: bool = True) -> set[str]:
    return set(languages_of(text, ended=ended))


def pieces(text: str, letters: int) -> list[str]:
    """Returns the text in pieces of so many letters, without the rest."""
    ends = [place + 1 for place, one in enumerate(text) if one.isalpha()][letters - 1 :: letters]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("language", SENTENCES)
def test_a_few_sentences_have_their_language(language: str) -> None:
    assert languages(" ".join(SENTENCES[language])) == {language}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_shortest_texts_are_never_taken_for_another_language(language: str) -> None:
    shortest = pieces(" ".join(SENTENCES[language]), MIN_LETTERS)
    assert shortest
    assert set().union(*map(languages, shortest)) <= {language}


def test_most_of_the_shortest_texts_have_a_language() -> None:
    shortest = [
        piece for texts in SENTENCES.values() for piece in pieces(" ".join(texts), MIN_LETTERS)
    ]
    assert sum(map(bool, map(languages, shortest))) > 0.7 * len(shortest)


@pytest.mark.parametrize("code", CODE)
def test_code_has_no_language_but_that_of_its_names(code: str) -> None:
    assert languages(code) <= {"en"}


@pytest.mark.parametrize(
    "text",
    [
        "Die Städte sind: New York, Los Angeles, Chicago, Houston, Phoenix, Philadelphia, "
        "San Diego, Dallas, Austin, Jacksonville, San Francisco, Columbus, Seattle, Denver.",
        "Links: [Bäckerei](https://www.example.com/bakery/opening-hours/monday-to-friday?lang=en) "
        "und [Anleitung](https://docs.python.org/3/library/asyncio-task.html#asyncio.create_task).",
        "Verwende `git commit --amend`, danach `git push --force-with-lease origin main`, und "
        "prüfe mit `git log --oneline --graph --all`, ob es stimmt. Sonst hilft `git reset`.",
    ],
)
def test_names_links_and_commands_are_not_another_language(text: str) -> None:
    assert languages(text) <= {"de"}


@pytest.mark.parametrize(
    "text", ["", "Ja, gerne.", "12 + 30 = 42", "https://a.example/?q=1", "😀" * 200, "\ud800" * 9]
)
def test_short_texts_and_what_is_no_text_have_none(text: str) -> None:
    assert languages(text) == set()


@pytest.mark.parametrize("code", ["```\n{}\n```\n", "  ```python\n{}\n  ```\n", "```\n{}"])
def test_code_blocks_are_not_looked_into(code: str) -> None:
    assert languages(f"{GERMAN}\n{code.format(ENGLISH)}") == {"de"}


def test_what_follows_a_code_block_is_looked_into() -> None:
    assert languages(f"```\n{GERMAN}\n```\n{ENGLISH}") == {"en"}


def test_a_text_that_goes_on_in_another_language_has_both() -> None:
    assert languages(f"{GERMAN} {ENGLISH}") == {"de", "en"}


def test_of_an_unfinished_text_the_end_has_none_yet() -> None:
    (piece,) = pieces(ENGLISH, STRETCH_LETTERS - 1)[:1]
    assert languages(piece, ended=False) == set()
    assert languages(piece) == languages(piece + "a", ended=False) == {"en"}
    assert languages(f"{piece}\n```", ended=False) == {"en"}


def test_languages_are_named_as_in_iso_639_1() -> None:
    assert {*SENTENCES, "nn"} < known_languages()
    assert all(len(language) == 2 for language in known_languages())


PARTS = st.sampled_from(
    ["word ", "Straße, ", "計画。", "\n```\n", "```py", "\n", "``", "`", "x" * 60, "12 ", "é"]
)


@settings(deadline=None)
@given(st.lists(PARTS, max_size=30).map("".join), st.integers(0, 400))
def test_what_is_complete_stays_as_it_is(text: str, length: int) -> None:
    begun = [one for one in stretches(text[:length]) if one.complete]
    assert begun == list(stretches(text))[: len(begun)]
    assert all(text[: one.end].endswith(one.text) for one in begun)
