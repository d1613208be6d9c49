"""Verdicts are calibrated by adapter.

Revision: 2026_11_27_calibrations
Revises: 2026_11_27_run_source
Created: 2026-11-27
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_calibrations"
down_revision = "2026_11_27_run_source"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "calibrations",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("adapter", _NUMBER, nullable=True),
        sa.Column("model_revision", sa.Text(), nullable=False),
        sa.Column("slope", sa.Double(), nullable=False),
        sa.Column("intercept", sa.Double(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calibrations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_calibrations_model_revision", "calibrations", ["model_revision"])


def downgrade() -> None:
    op.drop_table("calibrations")
