"""Streams and revisions: how much of a flagged answer was out, and what came in its place.

Revision: 2026_11_23_streams
Revises: 2026_11_22_refine
Created: 2026-11-23
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_streams"
down_revision = "2026_11_22_refine"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "flags", sa.Column("released_chars", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("flags", sa.Column("revision", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("flags") as flags:
        flags.drop_column("revision")
        flags.drop_column("released_chars")
