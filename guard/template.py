"""The model's chat format. Owns everything derived from the chat template: the turn that follows an
answer, the prompt around one text, and where the reply begins. Owns no wording (prompts.py) and no
system turn (system_turn.py). Calls no engine.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guard import prompts
from guard.call import EmptyReasoning
from guard.errors import TemplateUnusable
from guard.system_turn import system_turn

_USER = "SETBACKUSER"
_ANSWER = "SETBACKANSWER"
_QUESTION = "SETBACKQUESTION"
_REPLY = "SETBACKREPLY"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the guard uses."""

    eos_token_id: int

    def encode(self, text: str, **options: Any) -> list[int]:
        """Returns the token ids of `text`."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Returns the text of `token_ids`."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Returns the conversation in the model's chat format."""


@dataclass(frozen=True)
class TextFrame:
    """A prompt around a text: `head`, then the text's tokens, then `tail`."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def around(self, text_ids: Sequence[int]) -> list[int]:
        """Returns the prompt around `text_ids`."""
        return [*self.head, *text_ids, *self.tail]

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


class ChatFormat:
    """A chat template, parsed once at start-up, with thinking switched off.

    The reply to a question begins where the template puts an assistant's words: after the reasoning
    or the channel header with which the model itself would begin.

    Raises TemplateUnusable when the tokenizer cannot be used, or when the template refuses a user
    turn after the assistant's or changes the turns' text.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._special: dict[int, bool] = {}
        self._refuse_unusable_tokenizer()
        question = [_turn("user", _USER), _turn("assistant", _ANSWER), _turn("user", _QUESTION)]
        rendered = self._render(
            [*question, _turn("assistant", _REPLY)], add_generation_prompt=False
        )
        _, found_answer, after_answer = rendered.rpartition(_ANSWER)
        self._before_question, found_question, rest = after_answer.partition(_QUESTION)
        before_reply, found_reply, _ = rest.rpartition(_REPLY)
        if not (found_answer and found_question and found_reply):
            raise TemplateUnusable(
                "The chat template does not show the assistant's answer and the user's next turn "
                "as they were given. Serve a template that does with --chat-template."
            )
        self._prompt_end = self._render(question).rpartition(_QUESTION)[2]
        thinking = self._render(question, enable_thinking=True).rpartition(_QUESTION)[2]
        # Only a template that supports thinking closes the reasoning in its prompt. Otherwise drop
        # the trailing space: it is part of the next word's token.
        supports_thinking = thinking != self._prompt_end
        self._after_question = self._prompt_end if supports_thinking else before_reply.rstrip(" ")
        self._tails = self._generation_tails()
        before_user = self._render([_turn("user", _USER)]).partition(_USER)[0]
        self._first_turn = self._ids(before_user.rstrip(" "))
        later_user_turn = self._ids(self._before_question.rstrip(" "))
        # What precedes a user's words in any turn of a conversation.
        self._user_start = os.path.commonprefix([self._first_turn[::-1], later_user_turn[::-1]])[
            ::-1
        ]
        self._system_turn = system_turn(self._render, self._ids, self._is_special)

    @property
    def end_of_turn(self) -> int:
        """The id of the token that ends an assistant turn."""
        marks = (mark for mark in self._ids(self._answer_end()) if self._is_special(mark))
        return next(marks, self._tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of untrusted text: special tokens spelled out in it stay plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of `token_ids` without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def question_after_answer(self, question: str, reply: str = "") -> tuple[int, ...]:
        """Returns the ids after an answer: its end of turn, `question` as a turn, and the start of
        the next reply, which begins with `reply`."""
        return self._ids(self._before_question + question + self._after_question + reply)

    def after_answer(self, mark: str) -> tuple[int, ...]:
        """Returns the ids after an answer: its end of turn, then `mark`, without a new turn."""
        return self._ids(self._answer_end() + mark)

    def turn_frame(self, mark: str) -> TextFrame:
        """Returns the prompt of one user turn with a gap for its text, and `mark` after its end."""
        head, _, tail = self._render([_turn("user", _USER)], add_generation_prompt=False).partition(
            _USER
        )
        return TextFrame(self._ids(head), self._ids(tail + mark))

    def text_frame(self, before: str, after: str, reply: str = "") -> TextFrame:
        """Returns the prompt of one user turn with a gap for a text between `before` and `after`;
        the reply begins with `reply`."""
        rendered = self._render_up_to_reply([_turn("user", before + _USER + after)])
        head, _, tail = rendered.partition(_USER)
        return TextFrame(self._ids(head), self._ids(tail + reply))

    def conversation(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the ids of a conversation up to where the assistant's words begin.

        Raises TemplateUnusable when the template refuses these roles in this order.
        """
        return list(self._ids(self._render_up_to_reply(messages)))

    def ended(self, messages: list[dict[str, str]], mark: str) -> list[int]:
        """Returns the ids of a conversation with its last turn ended, and `mark` after that.

        Raises TemplateUnusable when the template refuses these roles in this order.
        """
        return list(self._ids(self._render(messages, add_generation_prompt=False) + mark))

    def is_chat_prompt(self, prompt_ids: Sequence[int]) -> bool:
        """Whether `prompt_ids` end in an assistant turn of this template's."""
        return self.reply_start(prompt_ids) is not None

    def reply_start(self, prompt_ids: Sequence[int]) -> int | None:
        """Returns where the assistant's words begin: at the prompt's end, or before it if the
        caller wrote the beginning of the answer. None when the prompt has no open answer."""
        last_ids = {tail[-1] for tail in self._tails}
        for end in range(len(prompt_ids), 0, -1):
            if prompt_ids[end - 1] in last_ids and self._generation_tail(prompt_ids[:end]):
                return end
            if self._is_special(prompt_ids[end - 1]):
                return None
        return None

    def in_system_turn(self, prompt_ids: Sequence[int], words: str) -> list[int] | None:
        """Returns the prompt with `words` at the end of its system turn, or None when it does not
        begin as this template's prompts do."""
        return self._system_turn.with_words(prompt_ids, words)

    def reminded(self, prompt_ids: list[int], room: int) -> list[int]:
        """Returns a chat prompt with the reminder (the paper's step 4) in its system turn.

        Returns it unchanged when it is no chat prompt, or when the reminder would leave no room to
        answer. room: the context length in tokens.
        """
        if not self.is_chat_prompt(prompt_ids):
            return prompt_ids
        reminded = self.in_system_turn(prompt_ids, prompts.REMINDER)
        return reminded if reminded is not None and len(reminded) < room else prompt_ids

    def empty_reasoning(self, prompt_ids: Sequence[int]) -> EmptyReasoning | None:
        """Returns the empty reasoning that a replacement needs before it after this prompt, or None
        when the prompt does not leave reasoning to the model."""
        tail = self._generation_tail(prompt_ids)
        if tail is None or not self._after_question.startswith(self._tails[tail]):
            return None
        reasoning = self._after_question.removeprefix(self._tails[tail]).rstrip()
        token_ids = self._ids(reasoning)
        return (
            EmptyReasoning(reasoning, token_ids, self._tokenizer.decode(token_ids[-1:]))
            if token_ids
            else None
        )

    def last_turn(self, prompt_ids: Sequence[int]) -> tuple[TextFrame, list[int]] | None:
        """Returns the last user turn as a conversation of its own: the frame around it, and its
        tokens. Returns None when the prompt does not end with a user turn.
        """
        tail, start = self._generation_tail(prompt_ids), self._user_start
        if tail is None or not start:
            return None
        for position in range(len(prompt_ids) - len(tail) - len(start), -1, -1):
            if tuple(prompt_ids[position : position + len(start)]) == start:
                turn_ids = list(prompt_ids[position + len(start) : -len(tail)])
                return TextFrame(self._first_turn, tail), turn_ids
        return None

    def _generation_tail(self, prompt_ids: Sequence[int]) -> tuple[int, ...] | None:
        for tail in self._tails:
            if tuple(prompt_ids[-len(tail) :]) == tail:
                return tail
        return None

    def _generation_tails(self) -> dict[tuple[int, ...], str]:
        """Returns what may stand between a user's last word and the reply, longest first."""
        conversation = [_turn("user", _USER)]
        texts = {
            self._render(conversation, **thinking).rpartition(_USER)[2]
            for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False})
        }
        tails = [(self._ids(text), text) for text in sorted(texts | {self._after_question})]
        return dict(sorted((t for t in tails if t[0]), key=lambda t: len(t[0]), reverse=True))

    def _answer_end(self) -> str:
        """Returns what the template puts after an answer that is the last turn."""
        turns = [_turn("user", _USER), _turn("assistant", _ANSWER)]
        return self._render(turns, add_generation_prompt=False).rpartition(_ANSWER)[2]

    def _render_up_to_reply(self, messages: list[dict[str, str]]) -> str:
        """Renders a conversation up to where the assistant's words begin."""
        rendered = self._render(messages)
        without_end = rendered.removesuffix(self._prompt_end)
        return rendered if without_end == rendered else without_end + self._after_question

    def _refuse_unusable_tokenizer(self) -> None:
        """Raises TemplateUnusable for a tokenizer that cannot keep special tokens in a text apart
        from real ones, such as that of vLLM's Mistral mode."""
        try:
            self.encode(_USER)
        except TypeError as error:
            raise TemplateUnusable(
                f"A critique cannot be built with {type(self._tokenizer).__name__}: it does not "
                "turn a chat template's text into tokens. Serve a folder with tokenizer.json and "
                "a chat template, with --tokenizer-mode hf."
            ) from error

    def _is_special(self, token_id: int) -> bool:
        """Whether a token is special; includes those the tokenizer has no name for."""
        if token_id not in self._special:
            # Twice, because some tokenizers drop a text's first space.
            text = self._tokenizer.decode([token_id] * 2, skip_special_tokens=True)
            self._special[token_id] = text == ""
        return self._special[token_id]

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
