"""The values a critique produces. Owns the category names and their letters. Decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CATEGORIES: tuple[str, ...] = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""OpenAI's 13 moderation categories, in the order of their letters A to M in the category read."""

CATEGORY_LETTERS: Mapping[str, str] = dict(zip("ABCDEFGHIJKLM", CATEGORIES, strict=True))


@dataclass(frozen=True)
class TokensRead:
    """The prompt tokens of critiques: those found in the KV cache and those computed."""

    cached: int = 0
    computed: int = 0

    def __add__(self, other: "TokensRead") -> "TokensRead":
        return TokensRead(self.cached + other.cached, self.computed + other.computed)


@dataclass(frozen=True)
class Verdict:
    """What the critic read about one text.

    harm: probability in [0, 1] that the text is harmful.
    category_scores: joint probability per category, P(harmful and category), summing to `harm`;
        None when the category read was not run.
    reads: label reads it took (one per window, plus the category read). tokens: of all reads.
    prompt_version: the version of the prompts, see prompts.py.
    criteria: the probability that each criterion of the policy that was read applies.
    """

    harm: float
    category_scores: Mapping[str, float] | None
    reads: int = 1
    tokens: TokensRead = TokensRead()
    prompt_version: str = ""
    criteria: Mapping[str, float] = field(default_factory=dict)

    def with_criteria(self, others: Mapping[str, float]) -> "Verdict":
        """Returns the verdict with each criterion's highest probability."""
        criteria = dict(self.criteria)
        for name, probability in others.items():
            criteria[name] = max(probability, criteria.get(name, 0.0))
        return replace(self, criteria=criteria)

    @property
    def scores(self) -> Mapping[str, float]:
        """Everything that was read, by name: the categories and the criteria."""
        return {**(self.category_scores or {}), **self.criteria}

    @property
    def top_category(self) -> str | None:
        """The most probable category, or None when categories were not read."""
        if self.category_scores is None:
            return None
        return max(CATEGORIES, key=self.category_scores.__getitem__)

    @property
    def named(self) -> tuple[str, ...]:
        """The categories the text is about: the top one and any with a quarter of the harm mass.

        In the order of CATEGORIES; empty when categories were not read.
        """
        scores = self.category_scores
        if scores is None:
            return ()
        mass = sum(scores.values())
        return tuple(
            name
            for name in CATEGORIES
            if name == self.top_category or (mass > 0 and scores[name] >= mass / 4)
        )
