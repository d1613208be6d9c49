"""How far webhooks were delivered.

Revision: 2026_11_29_webhooks
Revises: 2026_11_29_flag_numbers
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_webhooks"
down_revision = "2026_11_29_flag_numbers"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("delivered", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("type", name="pk_webhooks"),
    )


def downgrade() -> None:
    op.drop_table("webhooks")
