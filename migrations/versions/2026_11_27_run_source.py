"""A run tells where its mistakes come from: flags, or a corpus.

Revision: 2026_11_27_run_source
Revises: 2026_11_25_key_usage
Created: 2026-11-27
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_run_source"
down_revision = "2026_11_25_key_usage"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The default stays: SQLite would have to make the table anew, and number its runs from one.
    op.add_column("runs", sa.Column("source", sa.Text(), nullable=False, server_default="flags"))


def downgrade() -> None:
    op.drop_column("runs", "source")
