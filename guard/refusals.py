"""What is sent instead of a withheld answer: its revision, or the refusal of the policy or of the
criterion that it was flagged for. Owns the refusals as tokens. Decides nothing.
"""

from guard.call import Replacement, Ruling
from guard.policy import Policy
from guard.template import Tokenizer


class Refusals:
    """The refusals of one policy."""

    def __init__(self, policy: Policy, tokenizer: Tokenizer) -> None:
        def refusal(text: str) -> Replacement:
            return Replacement(text, tuple(tokenizer.encode(text, add_special_tokens=False)))

        self._default = refusal(policy.refusal)
        self._by_criterion = {
            criterion.name: refusal(criterion.refusal)
            for criterion in policy.criteria
            if criterion.refusal is not None
        }

    def instead_of(self, ruling: Ruling) -> Replacement:
        """Returns what replaces an answer that the ruling withholds."""
        if ruling.revision is not None:
            return ruling.revision
        criterion = ruling.decision.criterion
        return self._by_criterion.get(criterion.name if criterion else "", self._default)
