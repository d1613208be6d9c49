"""Text in the system turn: the prompt equals the template's rendering of a system message with it,
for all kinds of chat templates."""

from typing import Any

import pytest

from guard.template import ChatFormat

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}" + _TURNS
)
"""As SmolLM2 and Qwen 2.5: a system message of the model's own where there is none."""
DATED = (
    "<|im_start|>system\nToday: {{ date | default('Monday') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|im_end|>\n" + _TURNS
)
"""As Llama 3: the date comes first."""
MERGED = (
    "{% if messages[0].role == 'system' %}{% set words = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set words = '' %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.first %}{{ words }}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Gemma 3 and the first Mistral: a system message stands in the first user turn."""
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
"""As Gemma 2."""

USER = {"role": "user", "content": "Ask."}
LATER = [USER, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


@pytest.mark.parametrize("template", [None, MERGED], ids=["a turn of its own", "merged"])
@pytest.mark.parametrize("turns", [[USER], LATER], ids=["one turn", "several"])
def test_a_prompt_without_a_system_message_gets_one(
    tokenizer: Any, template: str | None, turns: list[dict[str, str]]
) -> None:
    chat_format = ChatFormat(tokenizer, template)
    added = chat_format.in_system_turn(chat_format.conversation(turns), "Mind.")
    assert added is not None
    expected = chat_format.conversation([system("Mind."), *turns])
    assert tokenizer.decode(added) == tokenizer.decode(expected)


@pytest.mark.parametrize("template", [None, DEFAULT, DATED], ids=["none", "default", "dated"])
def test_the_words_follow_those_of_a_system_message(tokenizer: Any, template: str | None) -> None:
    chat_format = ChatFormat(tokenizer, template)
    added = chat_format.in_system_turn(
        chat_format.conversation([system("Be brief."), *LATER]), "Mind."
    )
    assert added is not None
    expected = chat_format.conversation([system("Be brief.\n\nMind."), *LATER])
    assert tokenizer.decode(added) == tokenizer.decode(expected)


def test_the_words_follow_the_templates_own(tokenizer: Any) -> None:
    chat_format = ChatFormat(tokenizer, DEFAULT)
    added = chat_format.in_system_turn(chat_format.conversation([USER]), "Mind.")
    assert added is not None
    expected = chat_format.conversation([system("You are helpful.\n\nMind."), USER])
    assert tokenizer.decode(added) == tokenizer.decode(expected)


def test_the_day_after_the_start_the_system_turn_is_still_found(tokenizer: Any) -> None:
    chat_format = ChatFormat(tokenizer, DATED)
    next_day = tokenizer.apply_chat_template(
        [USER], chat_template=DATED, date="Tuesday", tokenize=False, add_generation_prompt=True
    )
    added = chat_format.in_system_turn(tokenizer.encode(next_day), "Mind.")
    assert added is not None
    assert tokenizer.decode(added).count("system") == 1
    assert "Tuesday\n\n\n\nMind.<|im_end|>" in tokenizer.decode(added)


def test_a_template_that_refuses_system_messages_has_them_before_the_users(tokenizer: Any) -> None:
    chat_format = ChatFormat(tokenizer, REFUSING + _TURNS)
    added = chat_format.in_system_turn(chat_format.conversation(LATER), "Mind.")
    assert added is not None
    expected = chat_format.conversation([{"role": "user", "content": "Mind.\n\nAsk."}, *LATER[1:]])
    assert tokenizer.decode(added) == tokenizer.decode(expected)


def test_the_prompts_prefix_is_shared_by_requests(tokenizer: Any) -> None:
    chat_format = ChatFormat(tokenizer, DEFAULT)
    other = {"role": "user", "content": "Something else?"}
    first, second = (
        chat_format.in_system_turn(chat_format.conversation([turn]), "Mind.")
        for turn in (USER, other)
    )
    assert first is not None
    assert second is not None
    before = len(tokenizer.encode("<|im_start|>system\nYou are helpful.\n\nMind.<|im_end|>\n"))
    assert first[:before] == second[:before]


@pytest.mark.parametrize("template", [DEFAULT, MERGED], ids=["a turn of its own", "merged"])
def test_other_prompts_are_left_unchanged(tokenizer: Any, template: str) -> None:
    chat_format = ChatFormat(tokenizer, template)
    assert chat_format.in_system_turn(chat_format.encode("Once upon a time"), "Mind.") is None
    assert chat_format.in_system_turn([], "Mind.") is None
