"""Staged rollouts, and what was counted in them.

Revision: 2026_11_29_rollouts
Revises: 2026_11_29_replicas
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_rollouts"
down_revision = "2026_11_29_replicas"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", _NUMBER, nullable=False),
        sa.Column("compared_with", _NUMBER, nullable=True),
        sa.Column("share", sa.Double(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("by", "reason", "status", "outcome")
        ),
        sa.Column("looks", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("judged", "both", "only_new", "only_old")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
        sa.ForeignKeyConstraint(
            ["version"], ["adapters.version"], name="fk_rollouts_version_adapters"
        ),
        sa.ForeignKeyConstraint(
            ["compared_with"], ["adapters.version"], name="fk_rollouts_compared_with_adapters"
        ),
        sqlite_autoincrement=True,
    )
    # One runs at a time.
    op.create_index(
        "ix_rollouts_running",
        "rollouts",
        ["status"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )
    op.create_table(
        "rollout_arms",
        sa.Column("rollout_id", _NUMBER, nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("requests", "answers", "flagged", "withheld", "errors", "timed")
        ),
        *(
            sa.Column(name, sa.Double(), nullable=False)
            for name in ("guard_s", "guard_s2", "token_s", "token_s2")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "arm", name="pk_rollout_arms"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name="fk_rollout_arms_rollout_id_rollouts"
        ),
    )


def downgrade() -> None:
    op.drop_table("rollout_arms")
    op.drop_table("rollouts")
