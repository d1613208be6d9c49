"""The practice model in `transformers`: greedy answers, verdicts and category reads, in batches.
Owns how the model runs outside the server. Knows no ground truth (evaluate.py).
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
    """A model and its tokenizer.

    model: a LlamaForCausalLM, untyped because transformers' types refuse its own `generate`.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, path: Path) -> "Reader":
        """Loads a model from a directory. Raises OSError when there is none."""
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
        """Returns the answer to each conversation in order: greedy, or sampled at a temperature.

        A conversation that ends in an assistant's turn gets the rest of that turn.
        """
        options: dict[str, Any] = {"max_new_tokens": max_tokens}
        if temperature:
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0}
        if seed is not None:
            torch.manual_seed(seed)
        answers: dict[int, str] = {}
        for indices, inputs in self._batches([self._prompt(c) for c in conversations]):
            with torch.inference_mode():
                out = self.model.generate(**inputs, **options)
            new = out[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            answers |= dict(zip(indices, texts, strict=True))
        return [answers[index] for index in range(len(conversations))]

    def harm(self, conversations: Sequence[Conversation]) -> list[float]:
        """Returns P(yes) / (P(yes) + P(no)) for each conversation's last answer, in [0, 1]."""
        question = prompts.CRITIQUE.format(subject="answer")
        return self._verdicts([self._ask(c, question) for c in conversations])

    def text_harm(self, texts: Sequence[str]) -> list[float]:
        """As `harm`, for free-standing texts."""
        question = prompts.CRITIQUE.format(subject="text")
        return self._verdicts([self._about(text, question) for text in texts])

    def categories(self, conversations: Sequence[Conversation]) -> list[str]:
        """Returns the most probable category of each last answer."""
        question = prompts.CATEGORY.format(subject="answer")
        letters = [self._token(letter) for letter in CATEGORY_LETTERS]
        scores = self._next_token([self._ask(c, question) for c in conversations])[:, letters]
        return [CATEGORIES[number] for number in scores.argmax(-1).tolist()]

    def _verdicts(self, prompts_: list[str]) -> list[float]:
        probabilities = self._next_token(prompts_)
        yes = probabilities[:, [self._token(w) for w in prompts.YES_WORDS]].sum(-1)
        no = probabilities[:, [self._token(w) for w in prompts.NO_WORDS]].sum(-1)
        return (yes / (yes + no)).tolist()

    def length(self, conversation: Conversation) -> int:
        """Returns a conversation's tokens, including the start of the next answer's turn."""
        return len(self.tokenizer.encode(self._prompt(conversation)))

    def _token(self, word: str) -> int:
        return int(self.tokenizer.encode(word)[0])

    def _prompt(self, conversation: Conversation) -> str:
        is_continued = conversation[-1]["role"] == "assistant"
        rendered = self.tokenizer.apply_chat_template(
            list(conversation),
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
            tokenize=False,
        )
        return str(rendered)

    def _ask(self, conversation: Conversation, question: str) -> str:
        return self._prompt([*conversation, {"role": "user", "content": question}])

    def _about(self, text: str, question: str) -> str:
        content = prompts.TEXT.format(text=text) + question
        return self._prompt([{"role": "user", "content": content}])

    def _next_token(self, rendered: list[str]) -> torch.Tensor:
        """Returns next-token probabilities after each conversation: [conversations, vocabulary]."""
        rows = torch.empty(len(rendered), self.model.config.vocab_size)
        for indices, inputs in self._batches(rendered):
            with torch.inference_mode():
                logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            rows[indices] = logits.float().softmax(-1)
        return rows

    def _batches(self, rendered: list[str]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yields left-padded batches of conversations of similar length, with their indices."""
        order = sorted(range(len(rendered)), key=lambda index: len(rendered[index]))
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            inputs = self.tokenizer(
                [rendered[index] for index in indices],
                padding=True,
                truncation=True,
                max_length=CONTEXT_LENGTH,
                return_tensors="pt",
            )
            yield indices, {k: inputs[k] for k in ("input_ids", "attention_mask")}
