"""Requests of limited keys are counted by the minute.

Revision: 2026_11_25_key_usage
Revises: 2026_11_24_console
Created: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_key_usage"
down_revision = "2026_11_24_console"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "key_usage",
        sa.Column("key_id", _NUMBER, nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "minute", name="pk_key_usage"),
        sa.ForeignKeyConstraint(
            ["key_id"], ["keys.id"], name="fk_key_usage_key_id_keys", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("key_usage")
