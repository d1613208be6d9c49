"""Events of the guard for monitoring. Owns the interface only; server/telemetry implements it."""

from typing import Literal, Protocol

from guard.criteria import Place
from guard.policy import Action
from guard.verdict import TokensRead

RevisionOutcome = Literal["used", "flagged", "none", "busy", "late", "failed"]
"""used: sent to the client. flagged: the critic flagged it. none: the model gave none.
busy: too many were running. late: it timed out. failed: the engine or the critic failed."""


class Observer(Protocol):
    """Receives each event once, as it happens. Durations are in seconds."""

    def verdict(self, category: str, *, adapter: str, policy: str) -> None:
        """A text was judged. category: its top category if flagged, otherwise "none". policy: the
        name of the one that decided."""

    def action(self, action: Action, *, adapter: str, policy: str) -> None:
        """An answer was passed, annotated, revised or blocked."""

    def input_blocked(self, *, adapter: str, policy: str) -> None:
        """A request was refused because its input was flagged."""

    def revision(self, outcome: RevisionOutcome, seconds: float) -> None:
        """An attempt to revise an answer ended, including the verdict on it."""

    def critique(self, seconds: float) -> None:
        """An answer was critiqued; the time from its last token to its verdict."""

    def critique_tokens(self, tokens: TokensRead) -> None:
        """A critique of an answer, a revision or an input used that many tokens."""

    def overhead(self, seconds: float) -> None:
        """The guard delayed an engine request by this, from its last token to its release."""

    def flag_written(self, place: Place, seconds: float) -> None:
        """A flag was committed; the time it took. place: where it was flagged."""

    def failed(self, code: str) -> None:
        """The critic or the store failed. code: of the error."""

    def adapter_active(self, version: int | None, *, swapped: bool) -> None:
        """This process serves that adapter from now on; None is the base model.

        swapped: while serving, not at start-up.
        """

    def adapter_refused(self, version: int) -> None:
        """An adapter could not be served: its files changed or the engine could not load it."""
