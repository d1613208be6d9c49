"""The store's tables. Owns the schema. Its history is in migrations/; the dataclasses of the stores
document the columns.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Table,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from guard.store.base import Base, Number


class FlagRow(Base):
    """One flagged answer or input; see flags.Flag.

    Only `id` is unique: a client may send the same x-request-id twice, and both flags count.
    """

    __tablename__ = "flags"
    __table_args__ = (
        Index(None, "created_at"),
        Index(None, "request_id"),
        # All filtered columns, so that no filter reads the flags themselves.
        Index(
            "ix_flags_filter",
            *("id", "created_at", "harm", "action", "adapter", "review", "user_hash", "place"),
        ),
    )

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    created_at: Mapped[datetime]
    request_id: Mapped[str]
    route: Mapped[str]
    place: Mapped[str] = mapped_column(server_default="output")
    choice: Mapped[int]
    messages: Mapped[list[Any]]
    answer: Mapped[str]
    released_chars: Mapped[int] = mapped_column(server_default="0")
    revision: Mapped[str | None]
    harm: Mapped[float]
    category_scores: Mapped[dict[str, Any]]
    categories: Mapped[list[Any]]
    action: Mapped[str]
    adapter: Mapped[str]
    model: Mapped[str]
    model_revision: Mapped[str]
    policy_hash: Mapped[str]
    prompt_version: Mapped[str]
    user_hash: Mapped[str | None]
    review: Mapped[str | None]
    reviewer: Mapped[str | None]
    reviewed_at: Mapped[datetime | None]
    corrected_category: Mapped[str | None]
    corrected_answer: Mapped[str | None]
    note: Mapped[str | None]


FLAG_NUMBERS = Table("flag_numbers", Base.metadata, Column("last", Number, nullable=False))
"""The highest number that a flag has had, in one row. SQLite gives the numbers of deleted rows to
new ones; PostgreSQL does not, and leaves this alone."""


class FlagCategoryRow(Base):
    """One of a flag's categories, for filtering. The search index is not defined here: each
    database creates its own, see search.py."""

    __tablename__ = "flag_categories"
    __table_args__ = (Index(None, "flag_id"),)

    category: Mapped[str] = mapped_column(primary_key=True)
    flag_id: Mapped[int] = mapped_column(
        Number, ForeignKey("flags.id", ondelete="CASCADE"), primary_key=True
    )


class RunRow(Base):
    """One run of the refine loop. Ids are never reused, since they number the adapters."""

    __tablename__ = "runs"
    __table_args__ = (Index(None, "status"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    source: Mapped[str] = mapped_column(server_default="flags")
    status: Mapped[str]
    stage: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    model: Mapped[str]
    model_revision: Mapped[str]
    # No foreign key: adapters refer to runs already, and a cycle cannot be migrated back.
    parent: Mapped[int | None] = mapped_column(Number)
    seed: Mapped[int] = mapped_column(Number)
    options: Mapped[dict[str, Any]]
    counts: Mapped[dict[str, Any]]
    # A Python None becomes SQL's NULL, not JSON's null.
    measures: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    reasons: Mapped[list[Any]]
    error: Mapped[str | None]
    dataset_sha256: Mapped[str | None]
    cancelled_by: Mapped[str | None]


class RunFlagRow(Base):
    """A flag that a run used: for training ("train"), for evaluation ("held_out"), or not at all
    because it is a duplicate of one of these ("repeat")."""

    __tablename__ = "run_flags"
    __table_args__ = (Index(None, "flag_id"),)

    run_id: Mapped[int] = mapped_column(Number, ForeignKey("runs.id"), primary_key=True)
    flag_id: Mapped[int] = mapped_column(Number, ForeignKey("flags.id"), primary_key=True)
    use: Mapped[str]


class AdapterRow(Base):
    """An adapter; `version` is the id of the run that made it, so it is never reused."""

    __tablename__ = "adapters"

    version: Mapped[int] = mapped_column(
        Number, ForeignKey("runs.id"), primary_key=True, autoincrement=False
    )
    created_at: Mapped[datetime]
    parent: Mapped[int | None] = mapped_column(Number, ForeignKey("adapters.version"))
    model_revision: Mapped[str]
    sha256: Mapped[str]
    status: Mapped[str]


class ActivationRow(Base):
    """A change of the active adapter; the newest row is in force. version None: the base model."""

    __tablename__ = "activations"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    created_at: Mapped[datetime]
    version: Mapped[int | None] = mapped_column(Number, ForeignKey("adapters.version"))
    by: Mapped[str]
    reason: Mapped[str]


class RolloutRow(Base):
    """A staged rollout, and what its shadow judged; see rollouts.StoredRollout."""

    __tablename__ = "rollouts"
    __table_args__ = (
        Index(
            "ix_rollouts_running",
            "status",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(Number, ForeignKey("adapters.version"))
    compared_with: Mapped[int | None] = mapped_column(Number, ForeignKey("adapters.version"))
    share: Mapped[float] = mapped_column(Double)
    by: Mapped[str]
    reason: Mapped[str]
    status: Mapped[str]
    outcome: Mapped[str]
    looks: Mapped[int]
    judged: Mapped[int] = mapped_column(BigInteger)
    both: Mapped[int] = mapped_column(BigInteger)
    only_new: Mapped[int] = mapped_column(BigInteger)
    only_old: Mapped[int] = mapped_column(BigInteger)


class RolloutArmRow(Base):
    """What all server processes counted for one adapter of a rollout; see rollouts.ArmCounts."""

    __tablename__ = "rollout_arms"

    rollout_id: Mapped[int] = mapped_column(Number, ForeignKey("rollouts.id"), primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    answers: Mapped[int] = mapped_column(BigInteger)
    flagged: Mapped[int] = mapped_column(BigInteger)
    withheld: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    timed: Mapped[int] = mapped_column(BigInteger)
    guard_s: Mapped[float] = mapped_column(Double)
    guard_s2: Mapped[float] = mapped_column(Double)
    token_s: Mapped[float] = mapped_column(Double)
    token_s2: Mapped[float] = mapped_column(Double)


class CalibrationRow(Base):
    """A calibration of an adapter, or of the base model (None); the newest of each is in force.

    slope, intercept: of answers in their conversations. No foreign key: a calibration outlives its
    adapter.
    """

    __tablename__ = "calibrations"
    __table_args__ = (Index(None, "model_revision"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    created_at: Mapped[datetime]
    adapter: Mapped[int | None] = mapped_column(Number)
    model_revision: Mapped[str]
    slope: Mapped[float] = mapped_column(Double)
    intercept: Mapped[float] = mapped_column(Double)
    text_slope: Mapped[float] = mapped_column(Double)
    text_intercept: Mapped[float] = mapped_column(Double)
    rows: Mapped[int] = mapped_column(BigInteger)
    by: Mapped[str]


class KeyRow(Base):
    """An API key; see keys.Key."""

    __tablename__ = "keys"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    sha256: Mapped[str]
    hint: Mapped[str]
    requests_per_minute: Mapped[int | None]
    policy: Mapped[str | None]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class WebhookRow(Base):
    """The number of the newest event of a type that was delivered; see webhooks.WebhookStore."""

    __tablename__ = "webhooks"

    type: Mapped[str] = mapped_column(primary_key=True)
    delivered: Mapped[int] = mapped_column(Number)


class ReplicaRow(Base):
    """An API process and what it serves; see replicas.Replica."""

    __tablename__ = "replicas"

    name: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    ready: Mapped[bool]
    adapter: Mapped[int | None] = mapped_column(Number)
    model: Mapped[str]
    model_revision: Mapped[str]
    policy_hash: Mapped[str]
    version: Mapped[str]


class PolicyFileRow(Base):
    """A policy file that was activated in the database; see policies.StoredPolicyFile."""

    __tablename__ = "policy_files"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    text: Mapped[str]
    by: Mapped[str]
    created_at: Mapped[datetime]


class PolicyRow(Base):
    """A policy that was in force; see policies.StoredPolicy. Two names may have the same rules."""

    __tablename__ = "policies"

    hash: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class KeyUsageRow(Base):
    """How often a rate-limited key was used in one minute; see usage.Usage."""

    __tablename__ = "key_usage"

    key_id: Mapped[int] = mapped_column(
        Number, ForeignKey("keys.id", ondelete="CASCADE"), primary_key=True
    )
    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)


class AuditRow(Base):
    """One recorded action; see audit.AuditEntry."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    created_at: Mapped[datetime]
    actor: Mapped[str]
    event: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, Any]]


class TrafficRow(Base):
    """What all server processes answered in one minute; see traffic.Traffic."""

    __tablename__ = "traffic"

    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    answers: Mapped[int] = mapped_column(BigInteger)
    flagged: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)
    overhead_s: Mapped[float] = mapped_column(Double)


class LeaseRow(Base):
    """Which process holds a lease, and until when; see leases.Leases."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    token: Mapped[str]
    expires_at: Mapped[datetime]


class SecretRow(Base):
    """A random value that all processes share. Migrations create `user_salt`, `refine_token` and
    `console_secret`."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


METADATA = Base.metadata
"""All tables."""
