"""The tokenizer and the chat template: lossless, reproducible, tolerant."""

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from guard import prompts
from refine.practice.corpus import examples
from refine.practice.recipe import IM_END, SHAPE
from refine.practice.tokenizer import train_tokenizer
from refine.practice.train import encode

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


def render(messages: list[Any], **options: Any) -> str:
    return str(tokenizer().apply_chat_template(messages, tokenize=False, **options))


def test_vocabulary_has_the_recipes_size() -> None:
    assert len(tokenizer()) == SHAPE.vocab_size


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = tokenizer().encode(text)
    assert tokenizer().decode(ids) == text
    assert all(0 <= number < SHAPE.vocab_size for number in ids)


@pytest.mark.parametrize("word", prompts.YES_WORDS + prompts.NO_WORDS + tuple("ABCDEFGHIJKLM"))
def test_labels_are_single_tokens(word: str) -> None:
    assert len(tokenizer().encode(word)) == 1


def test_every_word_of_the_prompts_is_a_single_token() -> None:
    for prompt in (prompts.CRITIQUE, prompts.REMINDER, prompts.GUIDED_ANALYSIS):
        text = prompt.format(subject="answer")
        marks = sum(text.count(mark) for mark in ",.:?")
        assert len(tokenizer().encode(text)) == len(text.split()) + marks


def test_training_encodes_what_the_template_renders() -> None:
    for example in examples(200, seed=random.Random(0).randint(0, 9)):
        messages = [{"role": turn.role, "content": turn.content} for turn in example.turns]
        expected = tokenizer().encode(render(messages))[:1024]
        encoded = encode(example, tokenizer())
        assert encoded.ids == expected
        assert len(encoded.weights) == len(encoded.ids)


def test_learned_positions_are_the_reply_and_its_end() -> None:
    example = next(iter(examples(1, seed=0)))
    encoded = encode(example, tokenizer())
    learned = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w > 0]
    expected = "".join(turn.content + IM_END for turn in example.turns if turn.learned)
    assert tokenizer().decode(learned) == expected


def test_template_renders_chatml() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
    ]
    assert render(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        "Hi",
        [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
        ["H", "i"],
        [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}],
    ],
)
def test_content_may_be_text_or_parts(content: object) -> None:
    messages = [{"role": "user", "content": content}]
    assert render(messages) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_tolerated_and_changes_nothing(thinking: bool) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert render(messages, enable_thinking=thinking) == render(messages)


def test_tools_and_calls_are_rendered() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]
    text = render(messages, tools=[TOOL], add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nTools:\n<tools>\n{")
    assert '<tool_call>{"name": "weather", "arguments": {}}</tool_call>' in text
    assert "<|im_start|>tool\nsunny<|im_end|>" in text


def test_arguments_may_be_an_object() -> None:
    call = {"function": {"name": "weather", "arguments": {"place": "here"}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert '"arguments": {"place": "here"}}' in render(messages)
