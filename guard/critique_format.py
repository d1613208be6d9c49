"""The questions of each critique style, as token ids of one model: what follows an answer, the
frame around a text, and the labels that are read. Owns no wording (prompts.py). Calls no engine
(critic.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from guard import prompts
from guard.labels import LabelSet, category_labels, harm_labels
from guard.prompts import CritiqueStyle
from guard.template import ChatFormat, TextFrame, Tokenizer


@dataclass(frozen=True)
class Question:
    """One question about a text or an answer.

    after_answer: the ids that follow an answer's last token. around_text: the prompt around a
    free-standing text. labels: the tokens that answer the question.
    """

    after_answer: tuple[int, ...]
    around_text: TextFrame
    labels: LabelSet

    def build_prompt(self, piece: Sequence[int], *, is_text: bool) -> list[int]:
        """Returns the prompt about one window; the next token is the label."""
        return self.around_text.around(piece) if is_text else [*piece, *self.after_answer]

    @property
    def longest(self) -> int:
        """The most tokens that the question adds to what is judged."""
        return max(len(self.after_answer), len(self.around_text))


@dataclass(frozen=True)
class CritiqueFormat:
    """The questions of one style.

    harm: for the verdict. category: for the kind of harm, read only when the verdict is "yes".
    analysis: for the explanation; the model's reply begins with the verdict's label.
    """

    harm: Question
    category: Question
    analysis: Question

    @property
    def longest(self) -> int:
        """The most tokens that any of the questions adds."""
        return max(self.harm.longest, self.category.longest, self.analysis.longest)


def critique_format(
    style: CritiqueStyle, tokenizer: Tokenizer, chat_format: ChatFormat
) -> CritiqueFormat:
    """Raises TemplateUnusable when the tokenizer has no single token for a label."""
    if style is CritiqueStyle.LABEL:
        return _label_format(tokenizer, chat_format)
    form = prompts.FORMS[style]
    yes_no = harm_labels(tokenizer)
    return CritiqueFormat(
        harm=_worded_question(chat_format, form.question, form.reply, harm_labels(tokenizer, form)),
        category=_worded_question(chat_format, prompts.CATEGORY, "", category_labels(tokenizer)),
        analysis=_worded_question(chat_format, prompts.CRITIQUE, "", yes_no),
    )


def criterion_question(question: str, tokenizer: Tokenizer, chat_format: ChatFormat) -> Question:
    """Returns an operator's question, with a gap for its subject. It is answered by yes or no,
    whatever the style of the critique. Raises TemplateUnusable as critique_format does."""
    return _worded_question(chat_format, question, "", harm_labels(tokenizer))


def _worded_question(
    chat_format: ChatFormat, question: str, reply: str, labels: LabelSet
) -> Question:
    """Returns a question in words, as a turn of its own; the model's reply begins with `reply`."""
    before, _, after = prompts.TEXT.partition("{text}")
    return Question(
        chat_format.question_after_answer(
            prompts.about("answer", question), prompts.about("answer", reply)
        ),
        chat_format.text_frame(
            before, after + prompts.about("text", question), prompts.about("text", reply)
        ),
        labels,
    )


def _label_format(tokenizer: Tokenizer, chat_format: ChatFormat) -> CritiqueFormat:
    form = prompts.FORMS[CritiqueStyle.LABEL]
    harmful_reply = f"{form.reply} {form.harmful[0]}"
    harm = _marked_question(chat_format, form.reply, harm_labels(tokenizer, form))
    return CritiqueFormat(
        harm=harm,
        category=_marked_question(
            chat_format, harmful_reply, category_labels(tokenizer, after_word=True)
        ),
        analysis=harm,
    )


def _marked_question(chat_format: ChatFormat, mark: str, labels: LabelSet) -> Question:
    """Returns a question without words: a mark after the end of the turn that is judged."""
    return Question(chat_format.after_answer(mark), chat_format.turn_frame(mark), labels)
