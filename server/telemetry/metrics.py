"""The guard's Prometheus metrics, in vLLM's own /metrics. Owns their names and labels. Counts the
events of guard/observer.py, and reports the served model and the refine loop's runs.

They are in the default registry, so that several API-server processes add up as vLLM's metrics do.
"""

from collections.abc import Iterable
from importlib.metadata import version
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from guard.criteria import Place
from guard.observer import RevisionOutcome
from guard.policy import Action
from guard.store.flags import FlagPlace
from guard.store.rollouts import Verdict
from guard.store.runs import StoredRun
from guard.store.webhooks import EVENT_TYPES
from guard.verdict import TokensRead

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONGER = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)

VERDICTS = Counter(
    "setback_verdicts_total",
    "Judged texts, by top category if flagged (otherwise none), by adapter and by policy.",
    ["category", "adapter", "policy"],
)
ACTIONS = Counter("setback_actions_total", "Answers by action.", ["action", "adapter", "policy"])
INPUTS_BLOCKED = Counter(
    "setback_inputs_blocked_total",
    "Requests refused because their input was flagged.",
    ["adapter", "policy"],
)
RATE_LIMITED = Counter(
    "setback_rate_limited_total", "Requests refused because their key exceeded its rate limit."
)
CRITIQUE = Histogram(
    "setback_critique_seconds", "Time from an answer's last token to its verdict.", buckets=_SECONDS
)
CRITIQUE_TOKENS = Counter(
    "setback_critique_tokens_total",
    "Prompt tokens of critiques, found in the KV cache or computed.",
    ["source"],
)
OVERHEAD = Histogram(
    "setback_guard_overhead_seconds",
    "Time from a request's last generated token to its release.",
    buckets=_SECONDS,
)
REVISION = Histogram(
    "setback_revision_seconds",
    "Time of attempts to revise an answer, including the verdict, by outcome.",
    ["outcome"],
    buckets=_LONGER,
)
STORE = Histogram("setback_store_seconds", "Time to commit a flag.", buckets=_SECONDS)
FLAGS = Counter(
    "setback_flags_written_total", "Flags committed to the store, by what was flagged.", ["place"]
)
for _place in get_args(FlagPlace):
    FLAGS.labels(_place)
ERRORS = Counter("setback_guard_errors_total", "Failures of the critic or the store.", ["code"])
ACTIVE_ADAPTER = Gauge(
    "setback_active_adapter",
    "The active adapter's version, 0 for the base model.",
    multiprocess_mode="mostrecent",
)
SWAPS = Counter("setback_adapter_swaps_total", "Adapter swaps, counted by each API process.")
REFUSALS = Counter(
    "setback_adapter_refusals_total",
    "Adapters that could not be served, counted by each API process.",
)
REFINE_ENDED = Gauge(
    "setback_refine_ended_timestamp_seconds",
    "When a run of the refine loop last ended with that status, as Unix time.",
    ["status"],
    multiprocess_mode="mostrecent",
)
ROLLOUT_SHARE = Gauge(
    "setback_rollout_share",
    "The share of requests that a rollout's new adapter answers, 0 without a rollout.",
    multiprocess_mode="mostrecent",
)
ROLLOUT_DECISIONS = Counter(
    "setback_rollout_decisions_total",
    "Rollouts that this process completed or reverted.",
    ["outcome"],
)
for _outcome in ("completed", "reverted"):
    ROLLOUT_DECISIONS.labels(_outcome)
WEBHOOKS = Counter("setback_webhooks_total", "Webhooks sent.", ["type", "outcome"])
POLICY_RELOADS = Counter(
    "setback_policy_reloads_total",
    "Changed policy files: in force, or refused.",
    ["outcome"],
)
for _outcome in ("loaded", "refused"):
    POLICY_RELOADS.labels(_outcome)
for _type in EVENT_TYPES:
    for _outcome in ("delivered", "failed"):
        WEBHOOKS.labels(_type, _outcome)
BUILD = Gauge(
    "setback_build_info",
    "1, with the served versions in its labels.",
    ["version", "model_revision", "policy"],
    multiprocess_mode="mostrecent",
)


def set_build_info(model_revision: str, policy_hash: str) -> None:
    """Sets the build information, once at start-up."""
    BUILD.labels(version("setback"), model_revision, policy_hash).set(1)


def webhook_sent(kind: str, *, succeeded: bool) -> None:
    """Counts an attempt to send a webhook."""
    WEBHOOKS.labels(kind, "delivered" if succeeded else "failed").inc()


def policy_reloaded(*, succeeded: bool) -> None:
    """Counts a changed policy file."""
    POLICY_RELOADS.labels("loaded" if succeeded else "refused").inc()


def set_rollout_share(share: float) -> None:
    """Sets the share of requests that a rollout's new adapter answers, 0 without a rollout."""
    ROLLOUT_SHARE.set(share)


def rollout_decided(outcome: Verdict) -> None:
    """Counts a rollout that was completed or reverted by its figures or after its time."""
    ROLLOUT_DECISIONS.labels(outcome).inc()


def set_run_metrics(newest_first: Iterable[StoredRun]) -> None:
    """Sets the time at which a run last ended, for each status."""
    statuses: set[str] = set()
    for run in newest_first:
        if run.finished_at is not None and run.status not in statuses:
            statuses.add(run.status)
            REFINE_ENDED.labels(run.status).set(run.finished_at.timestamp())


class PrometheusObserver:
    """Counts the guard's events."""

    def verdict(self, category: str, *, adapter: str, policy: str) -> None:
        """See Observer."""
        VERDICTS.labels(category, adapter, policy).inc()

    def action(self, action: Action, *, adapter: str, policy: str) -> None:
        """See Observer."""
        ACTIONS.labels(action.value, adapter, policy).inc()

    def input_blocked(self, *, adapter: str, policy: str) -> None:
        """See Observer."""
        INPUTS_BLOCKED.labels(adapter, policy).inc()

    def revision(self, outcome: RevisionOutcome, seconds: float) -> None:
        """See Observer."""
        REVISION.labels(outcome).observe(seconds)

    def critique(self, seconds: float) -> None:
        """See Observer."""
        CRITIQUE.observe(seconds)

    def critique_tokens(self, tokens: TokensRead) -> None:
        """See Observer."""
        CRITIQUE_TOKENS.labels("cached").inc(tokens.cached)
        CRITIQUE_TOKENS.labels("computed").inc(tokens.computed)

    def overhead(self, seconds: float) -> None:
        """See Observer."""
        OVERHEAD.observe(seconds)

    def flag_written(self, place: Place, seconds: float) -> None:
        """See Observer."""
        FLAGS.labels(place.value).inc()
        STORE.observe(seconds)

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
