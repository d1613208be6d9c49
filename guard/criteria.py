"""Criteria: an operator's own rules, beside the 13 categories, in words for the model or as what is
found in a text. Owns their values and how a criterion is put to the model. Does not parse them
(policy_file.py), read their labels (criterion_reader.py) or decide what follows (policy.py).
"""

from dataclasses import dataclass
from enum import StrEnum

from guard import prompts
from guard.matchers import LanguageMatcher, LengthMatcher, Matcher
from guard.tool_calls import ArgumentMatcher

NAME = r"^[a-z][a-z0-9_/-]{0,63}$"
"""What names of criteria and categories look like: they are labels of metrics too."""


class Place(StrEnum):
    """Where a criterion applies: to what the model answers, to what it is asked, to the tools that
    it calls, or to what tools and documents tell it."""

    OUTPUT = "output"
    INPUT = "input"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"


@dataclass(frozen=True)
class CriterionExample:
    """A text, or a request and its answer, and whether the criterion applies to it."""

    text: str
    applies: bool
    request: str | None = None


@dataclass(frozen=True)
class Criterion:
    """One rule. The model reads whether it applies to a text, as it reads harm; or it applies where
    something is found in the text.

    description: what the rule is about, as a sentence. question: asked instead, if it is given;
    answered by yes where the rule applies. Either may name its subject by "{subject}".
    refusal: sent instead of the policy's. matcher: finds what the rule is about, without the model;
    arguments: does in the arguments of tool calls.
    """

    name: str
    description: str
    question: str
    applies_to: frozenset[Place]
    refusal: str | None = None
    examples: tuple[CriterionExample, ...] = ()
    matcher: Matcher | None = None
    arguments: ArgumentMatcher | None = None

    @property
    def is_read(self) -> bool:
        """Whether the model reads it."""
        return self.matcher is None and self.arguments is None

    @property
    def asked(self) -> str:
        """The question to the model, with a gap for the subject."""
        if self.question:
            return f"{self.question} {prompts.YES_OR_NO}"
        return prompts.CRITERION.replace("{description}", self.description)

    def asked_about(self, subject: str) -> str:
        """Returns the question about an "answer" or a "text"."""
        return prompts.about(subject, self.asked)

    @property
    def explained(self) -> str:
        """The question why it applies, which the model answers before it revises its answer."""
        return prompts.GUIDED_CRITERION.replace("{stated}", self.description or self._stated)

    @property
    def _stated(self) -> str:
        if self.is_read:
            return f"{self.question} Yes."
        match self.matcher:
            case None:
                return prompts.CALL_REFUSED
            case LengthMatcher(max_characters):
                return prompts.TOO_LONG.format(max_characters=max_characters)
            case LanguageMatcher(languages):
                return prompts.OTHER_LANGUAGE.format(languages=", ".join(languages))
            case _:
                return prompts.MATCHED
