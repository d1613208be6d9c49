"""What the guard tells those who watch it. Owns the interface only; server/metrics.py counts."""

from typing import Protocol

from guard.policy import Action


class Observer(Protocol):
    """Receives each event once, as it happens. Durations are in seconds."""

    def verdict(self, category: str, adapter: str) -> None:
        """A text was judged; `category` is its top category when flagged, else "none"."""

    def action(self, action: Action, adapter: str) -> None:
        """An answer was passed, annotated or blocked."""

    def critique(self, seconds: float) -> None:
        """One answer's critique, from its last token to its verdict."""

    def overhead(self, seconds: float) -> None:
        """What the guard added to one request: total minus the engine's own time."""

    def flag_written(self) -> None:
        """A flag was committed."""

    def failed(self, code: str) -> None:
        """The critic or the store failed, with the error's code."""

    def adapter_active(self, version: int | None, *, swapped: bool) -> None:
        """This process answers with that adapter from now on; None is the base alone.

        swapped: while serving, not at start-up.
        """

    def adapter_refused(self, version: int) -> None:
        """An adapter that should be served is not what was registered, or could not be loaded."""
