"""The labels of a verdict. Owns which tokens spell a label, and how their log-probabilities become
probabilities. Calls no engine (critic.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.calibration import probability
from guard.errors import CriticUnavailable, TemplateUnusable
from guard.prompts import YES_NO_FORM, CritiqueForm
from guard.template import Tokenizer
from guard.verdict import CATEGORY_LETTERS


@dataclass(frozen=True)
class LabelSet:
    """Labels, and the token ids that spell each as the first token of a reply."""

    tokens: Mapping[str, tuple[int, ...]]

    @property
    def token_ids(self) -> list[int]:
        """Every token of every label, in a fixed order."""
        return [token for tokens in self.tokens.values() for token in tokens]

    def probabilities(self, logprobs: Mapping[int, float]) -> dict[str, float]:
        """Returns the probability of each label, normalised over the labels.

        logprobs: natural log-probability per token id, -inf allowed.
        Raises CriticUnavailable when no label has any probability.
        """
        top = self._highest(logprobs)
        mass = {
            label: sum(math.exp(logprobs[token] - top) for token in tokens)
            for label, tokens in self.tokens.items()
        }
        total = sum(mass.values())
        return {label: value / total for label, value in mass.items()}

    def _highest(self, logprobs: Mapping[int, float]) -> float:
        top = max(logprobs[token] for token in self.token_ids)
        if not math.isfinite(top):
            raise CriticUnavailable("The model gave none of the labels any probability.")
        return top


@dataclass(frozen=True)
class AveragedLabels(LabelSet):
    """The labels "yes" and "no" with many words each, scored by the mean log-probability of their
    words, so that no frequent word dominates. slope, intercept: map the difference of the means to
    the log-odds of "yes".
    """

    slope: float
    intercept: float

    def probabilities(self, logprobs: Mapping[int, float]) -> dict[str, float]:
        """As LabelSet.probabilities. A log-probability below -100 counts as -100."""
        self._highest(logprobs)
        means = {
            label: sum(max(logprobs[token], -100.0) for token in tokens) / len(tokens)
            for label, tokens in self.tokens.items()
        }
        yes = probability(self.slope * (means["yes"] - means["no"]) + self.intercept)
        return {"yes": yes, "no": 1 - yes}


def harm_labels(tokenizer: Tokenizer, form: CritiqueForm = YES_NO_FORM) -> LabelSet:
    """Returns the labels "yes" and "no" of a verdict in the given form.

    Raises TemplateUnusable when the tokenizer has no single token for either.
    """
    words = {"yes": form.harmful, "no": form.harmless}
    if not form.reply:
        return _label_set(tokenizer, words)
    labels = _label_set(tokenizer, words, after_word=True)
    return labels if form.averaged is None else AveragedLabels(labels.tokens, *form.averaged)


def category_labels(tokenizer: Tokenizer, *, after_word: bool = False) -> LabelSet:
    """Returns a label for each category, spelled by its letter. after_word: it follows a word."""
    letters = {category: (letter,) for letter, category in CATEGORY_LETTERS.items()}
    return _label_set(tokenizer, letters, after_word=after_word)


def _label_set(
    tokenizer: Tokenizer, words: Mapping[str, Sequence[str]], *, after_word: bool = False
) -> LabelSet:
    # Depending on the tokenizer, a reply begins with or without a space. After a word there is one.
    starts = (" ",) if after_word else ("", " ")
    tokens = {
        label: _single_tokens(tokenizer, [start + word for word in spellings for start in starts])
        for label, spellings in words.items()
    }
    missing = [label for label, token_ids in tokens.items() if not token_ids]
    if missing:
        raise TemplateUnusable(
            f"The tokenizer has no single token for the labels {', '.join(missing)}; "
            "a one-token verdict cannot be read from this model."
        )
    return LabelSet(tokens)


def _single_tokens(tokenizer: Tokenizer, spellings: Sequence[str]) -> tuple[int, ...]:
    encoded = (tokenizer.encode(word, add_special_tokens=False) for word in spellings)
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
