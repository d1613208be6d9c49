"""What the guard tells those who watch it. Owns the interface only; server/telemetry/metrics.py
counts."""

from typing import Literal, Protocol

from guard.policy import Action
from guard.verdict import TokensRead

RevisionOutcome = Literal["used", "flagged", "none", "busy", "late", "failed"]
"""used: let out. flagged: the critic would not pass it. none: the model had none that fits.
busy: too many were under way. late: it took too long. failed: the engine or the critic did."""


class Observer(Protocol):
    """Receives each event once, as it happens. Durations are in seconds."""

    def verdict(self, category: str, adapter: str) -> None:
        """A text was judged; `category` is its top category when flagged, else "none"."""

    def action(self, action: Action, adapter: str) -> None:
        """An answer was passed, annotated, revised or blocked."""

    def input_blocked(self, adapter: str) -> None:
        """A request was refused for what it asks, without an answer."""

    def revision(self, outcome: RevisionOutcome, seconds: float) -> None:
        """One attempt to rewrite an answer, the verdict on it included."""

    def critique(self, seconds: float) -> None:
        """One answer's critique, from its last token to its verdict."""

    def critique_tokens(self, tokens: TokensRead) -> None:
        """A critique of an answer, whole or so far, of a revision or an input took that."""

    def overhead(self, seconds: float) -> None:
        """What the guard added to one engine request: from its last token to its last release."""

    def flag_written(self, seconds: float) -> None:
        """A flag was committed, in that time."""

    def failed(self, code: str) -> None:
        """The critic or the store failed, with the error's code."""

    def adapter_active(self, version: int | None, *, swapped: bool) -> None:
        """This process answers with that adapter from now on; None is the base alone.

        swapped: while serving, not at start-up.
        """

    def adapter_refused(self, version: int) -> None:
        """An adapter that should be served is not what was registered, or could not be loaded."""
