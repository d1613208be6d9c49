"""The practice model in `transformers`: greedy answers, verdicts and category reads, in batches.

Owns how the model is run outside the server. Knows no truth: see evaluate.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from guard import prompts
from guard.verdict import CATEGORIES, CATEGORY_LETTERS
from guard.vllm.cpu.processor import bfloat16_is_slow
from refine.practice.recipe import CONTEXT_LENGTH
from refine.practice.world import Message

Conversation = Sequence[Message]

_BATCH = 64
_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Reader:
    """A model and its tokenizer, ready to answer and to judge.

    model: a LlamaForCausalLM, untyped because transformers' types refuse its own `generate`.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, path: Path) -> "Reader":
        """Load from a directory. Raises OSError when there is no model in it."""
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        dtype = "float32" if bfloat16_is_slow() else "auto"
        model = LlamaForCausalLM.from_pretrained(path, dtype=dtype).eval()
        return cls(model, tokenizer)

    def answers(
        self,
        conversations: Sequence[Conversation],
        max_tokens: int = _ANSWER_TOKENS,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[str]:
        """The answer to each conversation, in order: greedy, or sampled at a temperature.

        One that ends in an assistant's turn gets the rest of that turn.
        """
        options: dict[str, Any] = {"max_new_tokens": max_tokens}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0}
        if seed is not None:
            torch.manual_seed(seed)
        said: dict[int, str] = {}
        for places, inputs in self._batches([self._prompt(c) for c in conversations]):
            with torch.inference_mode():
                out = self.model.generate(**inputs, **options)
            new = out[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            said |= dict(zip(places, texts, strict=True))
        return [said[place] for place in range(len(conversations))]

    def harm(self, conversations: Sequence[Conversation]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) for the last answer of each conversation, in [0, 1]."""
        question = prompts.CRITIQUE.format(subject="answer")
        return self._verdicts([self._ask(c, question) for c in conversations])

    def text_harm(self, texts: Sequence[str]) -> list[float]:
        """The same for free-standing texts."""
        question = prompts.CRITIQUE.format(subject="text")
        return self._verdicts([self._about(text, question) for text in texts])

    def categories(self, conversations: Sequence[Conversation]) -> list[str]:
        """The most probable category of each last answer."""
        question = prompts.CATEGORY.format(subject="answer")
        letters = [self._token(letter) for letter in CATEGORY_LETTERS]
        scores = self._next_token([self._ask(c, question) for c in conversations])[:, letters]
        return [CATEGORIES[number] for number in scores.argmax(-1).tolist()]

    def _verdicts(self, asked: list[str]) -> list[float]:
        probabilities = self._next_token(asked)
        yes = probabilities[:, [self._token(w) for w in prompts.YES_WORDS]].sum(-1)
        no = probabilities[:, [self._token(w) for w in prompts.NO_WORDS]].sum(-1)
        return (yes / (yes + no)).tolist()

    def length(self, conversation: Conversation) -> int:
        """Its tokens, with the beginning of an answer's turn."""
        return len(self.tokenizer.encode(self._prompt(conversation)))

    def _token(self, word: str) -> int:
        return int(self.tokenizer.encode(word)[0])

    def _prompt(self, conversation: Conversation) -> str:
        begun = conversation[-1]["role"] == "assistant"
        rendered = self.tokenizer.apply_chat_template(
            list(conversation),
            add_generation_prompt=not begun,
            continue_final_message=begun,
            tokenize=False,
        )
        return str(rendered)

    def _ask(self, conversation: Conversation, question: str) -> str:
        return self._prompt([*conversation, {"role": "user", "content": question}])

    def _about(self, text: str, question: str) -> str:
        content = prompts.TEXT.format(text=text) + question
        return self._prompt([{"role": "user", "content": content}])

    def _next_token(self, rendered: list[str]) -> torch.Tensor:
        """Next-token probabilities after each rendered conversation. [conversations, vocabulary]"""
        rows = torch.empty(len(rendered), self.model.config.vocab_size)
        for places, inputs in self._batches(rendered):
            with torch.inference_mode():
                logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            rows[places] = logits.float().softmax(-1)
        return rows

    def _batches(self, rendered: list[str]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Left-padded batches of conversations of like length, with their places."""
        order = sorted(range(len(rendered)), key=lambda place: len(rendered[place]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            inputs = self.tokenizer(
                [rendered[place] for place in places],
                padding=True,
                truncation=True,
                max_length=CONTEXT_LENGTH,
                return_tensors="pt",
            )
            yield places, {k: inputs[k] for k in ("input_ids", "attention_mask")}
