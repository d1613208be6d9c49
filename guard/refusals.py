"""What is sent instead of a withheld answer: its revision, or the refusal of the criterion or of
the policy that it was flagged by. Owns the refusals as tokens. Decides nothing.
"""

from guard.call import Replacement, Ruling
from guard.policy import Policy
from guard.template import Tokenizer


class Refusals:
    """The refusals of all policies."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def instead_of(self, ruling: Ruling, policy: Policy) -> Replacement:
        """Returns what replaces an answer that the policy's ruling withholds."""
        if ruling.revision is not None:
            return ruling.revision
        text = policy.refusal_for(ruling.decision)
        return Replacement(text, tuple(self._tokenizer.encode(text, add_special_tokens=False)))
