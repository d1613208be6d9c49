"""A key may have a policy of its own, policies can be activated in the database, and every one that
was in force is kept.

Revision: 2026_11_29_policies
Revises: 2026_11_27_calibrations
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_policies"
down_revision = "2026_11_27_calibrations"
branch_labels = None
depends_on = None


_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("keys", sa.Column("policy", sa.Text(), nullable=True))
    op.create_table(
        "policy_files",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policy_files"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "policies",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", "name", name="pk_policies"),
    )


def downgrade() -> None:
    op.drop_table("policies")
    op.drop_table("policy_files")
    op.drop_column("keys", "policy")
