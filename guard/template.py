"""Puts questions after answers in the model's own chat format. Owns everything learned from the
chat template: the turn that follows an answer, the prompt that holds one text, and where the
instruction ends. Owns no wording (prompts.py), no system turn (system_turn.py); calls no engine.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guard import prompts
from guard.call import Opening
from guard.errors import TemplateUnusable
from guard.system_turn import system_turn

_USER = "SETBACKUSER"
_ANSWER = "SETBACKANSWER"
_QUESTION = "SETBACKQUESTION"
_REPLY = "SETBACKREPLY"


class Tokenizer(Protocol):
    """What the guard needs of a Hugging Face tokenizer."""

    eos_token_id: int

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids of `text`."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Text of `token_ids`."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """The conversation in the model's chat format."""


@dataclass(frozen=True)
class TextFrame:
    """A prompt with a gap: `head`, then any tokens of a text, then `tail`."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def around(self, text_ids: Sequence[int]) -> list[int]:
        """The whole prompt with `text_ids` in the gap."""
        return [*self.head, *text_ids, *self.tail]

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


class ChatFormat:
    """A chat template taken apart once, at start-up, with thinking switched off.

    The reply to a question begins where the template puts an assistant's words, past the thought or
    the channel's head that the model would begin with by itself.

    Raises TemplateUnusable when the tokenizer cannot be used, or the template refuses a user turn
    after the assistant's or does not reproduce the turns' text.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._refuse_unusable_tokenizer()
        question = [_turn("user", _USER), _turn("assistant", _ANSWER), _turn("user", _QUESTION)]
        written = self._render([*question, _turn("assistant", _REPLY)], add_generation_prompt=False)
        _, found_answer, after_answer = written.rpartition(_ANSWER)
        self._before_question, found_question, rest = after_answer.partition(_QUESTION)
        before_reply, found_reply, _ = rest.rpartition(_REPLY)
        if not (found_answer and found_question and found_reply):
            raise TemplateUnusable(
                "The chat template does not show the assistant's answer and the user's next turn "
                "as they were given. Serve a template that does with --chat-template."
            )
        self._prompt_end = self._render(question).rpartition(_QUESTION)[2]
        thinking = self._render(question, enable_thinking=True).rpartition(_QUESTION)[2]
        # Only a template that knows of thinking closes the thought in its prompt. A space before a
        # word is part of the word's token.
        knows = thinking != self._prompt_end
        self._after_question = self._prompt_end if knows else before_reply.rstrip(" ")
        self._tails = self._generation_tails()
        before_user = self._render([_turn("user", _USER)]).partition(_USER)[0]
        self._first_turn = self._ids(before_user.rstrip(" "))
        later = self._ids(self._before_question.rstrip(" "))
        # What stands before a user's words wherever they come in a conversation.
        self._user_start = os.path.commonprefix([self._first_turn[::-1], later[::-1]])[::-1]
        self._system_turn = system_turn(self._render, self._ids, self._is_special)

    @property
    def end_of_turn(self) -> int:
        """The id that ends an assistant's turn."""
        marks = (mark for mark in self._ids(self._answer_end()) if self._is_special(mark))
        return next(marks, self._tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of text from outside: special tokens spelled out in it stay plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Readable text of `token_ids`, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def question_after_answer(self, question: str, reply: str = "") -> tuple[int, ...]:
        """Ids that follow an answer's last word: its end of turn, `question`, and where the reply
        starts, which begins with `reply`."""
        return self._ids(self._before_question + question + self._after_question + reply)

    def after_answer(self, mark: str) -> tuple[int, ...]:
        """Ids that follow an answer's last word: its end of turn, then `mark`, without a turn."""
        return self._ids(self._answer_end() + mark)

    def turn_frame(self, mark: str) -> TextFrame:
        """A one-turn prompt whose user says a text, and `mark` after the end of that turn."""
        head, _, tail = self._render([_turn("user", _USER)], add_generation_prompt=False).partition(
            _USER
        )
        return TextFrame(self._ids(head), self._ids(tail + mark))

    def text_frame(self, before: str, after: str, reply: str = "") -> TextFrame:
        """A one-turn prompt whose user says `before`, a text, and `after`; the reply begins with
        `reply`."""
        rendered = self._render_asked([_turn("user", before + _USER + after)])
        head, _, tail = rendered.partition(_USER)
        return TextFrame(self._ids(head), self._ids(tail + reply))

    def conversation(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where the assistant's words begin.

        Raises TemplateUnusable when the template refuses these roles in this order.
        """
        return list(self._ids(self._render_asked(messages)))

    def ended(self, messages: list[dict[str, str]], mark: str) -> list[int]:
        """Ids of a conversation with its last turn ended, and `mark` after that.

        Raises TemplateUnusable when the template refuses these roles in this order.
        """
        return list(self._ids(self._render(messages, add_generation_prompt=False) + mark))

    def is_chat_prompt(self, prompt_ids: Sequence[int]) -> bool:
        """Whether `prompt_ids` end where this template lets the assistant begin."""
        return self._tail_of(prompt_ids) is not None

    def in_system_turn(self, prompt_ids: Sequence[int], words: str) -> list[int] | None:
        """A conversation with `words` at the end of its system turn; None where it does not begin
        as this template lets one begin."""
        return self._system_turn.with_words(prompt_ids, words)

    def reminded(self, prompt_ids: list[int], room: int) -> list[int]:
        """A chat prompt with the reminder (the paper's step 4) in its system turn.

        Unchanged where it is no chat prompt, or where no token of `room` would be left to answer.
        """
        if not self.is_chat_prompt(prompt_ids):
            return prompt_ids
        guided = self.in_system_turn(prompt_ids, prompts.REMINDER)
        return guided if guided is not None and len(guided) < room else prompt_ids

    def opening(self, prompt_ids: Sequence[int]) -> Opening | None:
        """The empty thought that words after this prompt need to be read as an answer; None where
        the prompt leaves no thought to the model."""
        tail = self._tail_of(prompt_ids)
        if tail is None or not self._after_question.startswith(self._tails[tail]):
            return None
        thought = self._after_question.removeprefix(self._tails[tail]).rstrip()
        ids = self._ids(thought)
        return Opening(thought, ids, self._tokenizer.decode(ids[-1:])) if ids else None

    def last_turn(self, prompt_ids: Sequence[int]) -> tuple[TextFrame, list[int]] | None:
        """The last user turn as a conversation of its own: the frame that it fills, and its tokens.

        None where no user turn is the prompt's last.
        """
        tail, start = self._tail_of(prompt_ids), self._user_start
        if tail is None or not start:
            return None
        for place in range(len(prompt_ids) - len(tail) - len(start), -1, -1):
            if tuple(prompt_ids[place : place + len(start)]) == start:
                words = list(prompt_ids[place + len(start) : -len(tail)])
                return TextFrame(self._first_turn, tail), words
        return None

    def _tail_of(self, prompt_ids: Sequence[int]) -> tuple[int, ...] | None:
        for tail in self._tails:
            if tuple(prompt_ids[-len(tail) :]) == tail:
                return tail
        return None

    def _generation_tails(self) -> dict[tuple[int, ...], str]:
        """What can stand between a user's last word and the reply, longest first."""
        conversation = [_turn("user", _USER)]
        texts = {
            self._render(conversation, **thinking).rpartition(_USER)[2]
            for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False})
        }
        tails = [(self._ids(text), text) for text in sorted(texts | {self._after_question})]
        return dict(sorted((t for t in tails if t[0]), key=lambda t: len(t[0]), reverse=True))

    def _answer_end(self) -> str:
        """What the template puts after the words of an answer that is the last turn."""
        turns = [_turn("user", _USER), _turn("assistant", _ANSWER)]
        return self._render(turns, add_generation_prompt=False).rpartition(_ANSWER)[2]

    def _render_asked(self, messages: list[dict[str, str]]) -> str:
        """A conversation up to where the assistant's words begin."""
        rendered = self._render(messages)
        begun = rendered.removesuffix(self._prompt_end)
        return rendered if begun == rendered else begun + self._after_question

    def _refuse_unusable_tokenizer(self) -> None:
        """Raises TemplateUnusable where special tokens in a text could not be told from its words,
        as with the tokenizer of vLLM's Mistral mode."""
        try:
            self.encode(_USER)
        except TypeError as error:
            raise TemplateUnusable(
                f"A critique cannot be put with {type(self._tokenizer).__name__}: it does not turn "
                "a chat template's text into tokens. Serve a folder with tokenizer.json and a chat "
                "template, with --tokenizer-mode hf."
            ) from error

    def _is_special(self, token_id: int) -> bool:
        """Also of those that the tokenizer has no name for, such as the ends of turns."""
        return self._tokenizer.decode([token_id], skip_special_tokens=True) == ""

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, conversation: list[dict[str, str]], **options: Any) -> str:
        settings = {"enable_thinking": False, "add_generation_prompt": True} | options
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._chat_template, tokenize=False, **settings
            )
        except Exception as error:
            raise TemplateUnusable(
                f"The chat template cannot be used for a critique: {error}. Serve a model with a "
                "chat template, or name one with --chat-template."
            ) from error
        return str(rendered)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
