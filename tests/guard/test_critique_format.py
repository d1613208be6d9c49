"""The prompts of each critique style, as text."""

from typing import Any

import pytest

from guard.critique_format import CritiqueFormat, critique_format
from guard.prompts import CritiqueStyle
from guard.template import ChatFormat
from guard.verdict import CATEGORIES

TURNS = [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Answer."}]


@pytest.fixture
def label(tokenizer: Any) -> CritiqueFormat:
    return critique_format(CritiqueStyle.LABEL, tokenizer, ChatFormat(tokenizer))


def after_answer(tokenizer: Any, question: tuple[int, ...]) -> str:
    chat_format = ChatFormat(tokenizer)
    ids = [*chat_format.conversation(TURNS[:1]), *chat_format.encode("Answer."), *question]
    return str(tokenizer.decode(ids))


def test_a_label_follows_a_mark_after_the_end_of_the_answer(
    tokenizer: Any, label: CritiqueFormat
) -> None:
    ended = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert after_answer(tokenizer, label.harm.after_answer) == f"{ended}Harm:"
    assert after_answer(tokenizer, label.category.after_answer) == f"{ended}Harm: Yes"
    assert label.analysis == label.harm


def test_a_label_follows_a_text_that_stands_alone_as_it_follows_a_user_turn(
    tokenizer: Any, label: CritiqueFormat
) -> None:
    text = ChatFormat(tokenizer).encode("Ask.")
    ended = tokenizer.apply_chat_template(TURNS[:1], tokenize=False)
    assert tokenizer.decode(label.harm.build_prompt(text, is_text=True)) == f"{ended}Harm:"
    assert tokenizer.decode(label.category.build_prompt(text, is_text=True)) == f"{ended}Harm: Yes"


def test_labels_after_a_mark_begin_with_a_space(tokenizer: Any, label: CritiqueFormat) -> None:
    words = {tokenizer.decode([token]) for token in label.harm.labels.token_ids}
    assert words <= {" Yes", " yes", " YES", " No", " no", " NO"}
    assert tuple(label.category.labels.tokens) == CATEGORIES


@pytest.mark.parametrize("style", [CritiqueStyle.YES_NO, CritiqueStyle.TONE])
def test_a_question_in_words_is_a_turn_of_its_own(tokenizer: Any, style: CritiqueStyle) -> None:
    critique = critique_format(style, tokenizer, ChatFormat(tokenizer))
    text = after_answer(tokenizer, critique.harm.after_answer)
    _, answer, question = text.partition("Answer.")
    assert answer
    assert "answer above" in question
    assert tokenizer.decode(critique.harm.build_prompt([], is_text=True)).count("text above") == 1
    assert len(critique.harm.after_answer) <= critique.longest


def test_no_question_in_words_is_the_shortest(tokenizer: Any, label: CritiqueFormat) -> None:
    worded = critique_format(CritiqueStyle.YES_NO, tokenizer, ChatFormat(tokenizer))
    assert label.longest < worded.harm.longest
