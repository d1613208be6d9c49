"""Refine: reviews of flags, runs, adapters, activations, leases, and the refine routes' token.

Revision: 2026_11_22_refine
Revises: 2026_11_22_flags
Created: 2026-11-22
"""

import secrets
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_refine"
down_revision = "2026_11_22_flags"
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
REVIEW: tuple[Callable[[], sa.Column[object]], ...] = (
    lambda: sa.Column("review", sa.Text(), nullable=True),
    lambda: sa.Column("reviewer", sa.Text(), nullable=True),
    lambda: sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True),
)


def upgrade() -> None:
    for column in REVIEW:
        op.add_column("flags", column())
    _make_runs()
    _make_adapters()
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    values = sa.table("secrets", sa.column("name", sa.Text()), sa.column("value", sa.Text()))
    op.bulk_insert(values, [{"name": "refine_token", "value": secrets.token_hex(32)}])


def _make_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", Number, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_revision", sa.Text(), nullable=False),
        sa.Column("parent", Number, nullable=True),
        sa.Column("seed", Number, nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("measures", sa.JSON(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("dataset_sha256", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        # An id that was given once is never given again, even if its row is deleted.
        sqlite_autoincrement=True,
    )
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_table(
        "run_flags",
        sa.Column("run_id", Number, nullable=False),
        sa.Column("flag_id", Number, nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "flag_id", name="pk_run_flags"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_flags_run_id_runs"),
        sa.ForeignKeyConstraint(["flag_id"], ["flags.id"], name="fk_run_flags_flag_id_flags"),
    )
    op.create_index("ix_run_flags_flag_id", "run_flags", ["flag_id"])


def _make_adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("version", Number, autoincrement=False, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("parent", Number, nullable=True),
        sa.Column("model_revision", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_adapters"),
        sa.ForeignKeyConstraint(["version"], ["runs.id"], name="fk_adapters_version_runs"),
        sa.ForeignKeyConstraint(
            ["parent"], ["adapters.version"], name="fk_adapters_parent_adapters"
        ),
    )
    op.create_table(
        "activations",
        sa.Column("id", Number, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", Number, nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_activations"),
        sa.ForeignKeyConstraint(
            ["version"], ["adapters.version"], name="fk_activations_version_adapters"
        ),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.execute("DELETE FROM secrets WHERE name = 'refine_token'")
    for table in ("leases", "activations", "adapters", "run_flags", "runs"):
        op.drop_table(table)
    with op.batch_alter_table("flags") as flags:
        for column in REVIEW:
            flags.drop_column(column().name)
