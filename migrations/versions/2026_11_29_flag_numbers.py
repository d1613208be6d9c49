"""The number of a deleted flag is never given to another one, in SQLite too.

Revision: 2026_11_29_flag_numbers
Revises: 2026_11_29_policies
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_flag_numbers"
down_revision = "2026_11_29_policies"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # PostgreSQL's sequences do it. SQLite would have to make the table of flags anew.
    op.create_table("flag_numbers", sa.Column("last", _NUMBER, nullable=False))
    op.execute("INSERT INTO flag_numbers (last) SELECT coalesce(max(id), 0) FROM flags")


def downgrade() -> None:
    op.drop_table("flag_numbers")
