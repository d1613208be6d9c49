"""Which tokens mean a label, and how their log-probabilities become probabilities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.errors import CriticUnavailable, TemplateUnusable
from guard.prompts import NO_WORDS, YES_WORDS
from guard.template import Tokenizer
from guard.verdict import CATEGORY_LETTERS


@dataclass(frozen=True)
class LabelSet:
    """Labels and the token ids that spell each, as the first token of a reply."""

    tokens: Mapping[str, tuple[int, ...]]

    @property
    def token_ids(self) -> list[int]:
        """Every token of every label, in a fixed order."""
        return [token for tokens in self.tokens.values() for token in tokens]

    def probabilities(self, logprobs: Mapping[int, float]) -> dict[str, float]:
        """Probability per label, normalised over the labels.

        logprobs: natural log-probability per token id, -inf allowed.
        Raises CriticUnavailable when no label has any probability.
        """
        top = max(logprobs[token] for token in self.token_ids)
        if not math.isfinite(top):
            raise CriticUnavailable("The model gave none of the labels any probability.")
        mass = {
            label: sum(math.exp(logprobs[token] - top) for token in tokens)
            for label, tokens in self.tokens.items()
        }
        total = sum(mass.values())
        return {label: value / total for label, value in mass.items()}


def harm_labels(tokenizer: Tokenizer) -> LabelSet:
    """The labels "yes" and "no" of the critique."""
    return _label_set(tokenizer, {"yes": YES_WORDS, "no": NO_WORDS})


def category_labels(tokenizer: Tokenizer) -> LabelSet:
    """One label per category, spelled by its letter."""
    return _label_set(
        tokenizer, {category: (letter,) for letter, category in CATEGORY_LETTERS.items()}
    )


def _label_set(tokenizer: Tokenizer, words: Mapping[str, Sequence[str]]) -> LabelSet:
    tokens = {label: _single_tokens(tokenizer, spellings) for label, spellings in words.items()}
    missing = [label for label, found in tokens.items() if not found]
    if missing:
        raise TemplateUnusable(
            f"The tokenizer has no single token for the labels {', '.join(missing)}; "
            "a one-token verdict cannot be read from this model."
        )
    return LabelSet(tokens)


def _single_tokens(tokenizer: Tokenizer, spellings: Sequence[str]) -> tuple[int, ...]:
    # A reply may begin with or without a space, depending on the tokenizer.
    variants = [form for word in spellings for form in (word, " " + word)]
    encoded = (tokenizer.encode(form, add_special_tokens=False) for form in variants)
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
