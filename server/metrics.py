"""The guard's Prometheus metrics, in vLLM's own /metrics. Owns their names and labels; counts what
the guard reports (guard/observer.py).

They live in the default registry, so that several API-server processes add up as vLLM's do.
"""

from prometheus_client import Counter, Gauge, Histogram

from guard.policy import Action

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

VERDICTS = Counter(
    "setback_verdicts_total",
    "Texts judged, by the category they were flagged for (none if not flagged) and adapter.",
    ["category", "adapter"],
)
ACTIONS = Counter("setback_actions_total", "Answers by what was done.", ["action", "adapter"])
CRITIQUE = Histogram(
    "setback_critique_seconds", "From an answer's last token to its verdict.", buckets=_SECONDS
)
OVERHEAD = Histogram(
    "setback_guard_overhead_seconds",
    "What the guard added to a request: its total minus the engine's own time.",
    buckets=_SECONDS,
)
FLAGS = Counter("setback_flags_written_total", "Flags committed to the store.")
ERRORS = Counter("setback_guard_errors_total", "Failures of the critic or the store.", ["code"])
ACTIVE_ADAPTER = Gauge(
    "setback_active_adapter",
    "The version of the adapter in force, 0 for the base alone.",
    multiprocess_mode="mostrecent",
)
SWAPS = Counter("setback_adapter_swaps_total", "Adapters swapped, counted by each API process.")
REFUSALS = Counter(
    "setback_adapter_refusals_total",
    "Adapters that were to be served and were not, counted by each API process.",
)


class PrometheusObserver:
    """Counts the guard's events."""

    def verdict(self, category: str, adapter: str) -> None:
        """See Observer."""
        VERDICTS.labels(category, adapter).inc()

    def action(self, action: Action, adapter: str) -> None:
        """See Observer."""
        ACTIONS.labels(action.value, adapter).inc()

    def critique(self, seconds: float) -> None:
        """See Observer."""
        CRITIQUE.observe(seconds)

    def overhead(self, seconds: float) -> None:
        """See Observer."""
        OVERHEAD.observe(seconds)

    def flag_written(self) -> None:
        """See Observer."""
        FLAGS.inc()

    def failed(self, code: str) -> None:
        """See Observer."""
        ERRORS.labels(code).inc()

    def adapter_active(self, version: int | None, *, swapped: bool) -> None:
        """See Observer."""
        ACTIVE_ADAPTER.set(version or 0)
        if swapped:
            SWAPS.inc()

    def adapter_refused(self, _version: int) -> None:
        """See Observer."""
        REFUSALS.inc()
