"""A flag says where it was flagged: in an answer, in what was asked, or in a tool's result.

Revision: 2026_11_29_flag_places
Revises: 2026_11_29_text_scales
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_flag_places"
down_revision = "2026_11_29_text_scales"
branch_labels = None
depends_on = None

_INDEX = "ix_flags_filter"
_FILTERED = ["id", "created_at", "harm", "action", "adapter", "review", "user_hash"]


def upgrade() -> None:
    op.add_column("flags", sa.Column("place", sa.Text(), nullable=False, server_default="output"))
    op.drop_index(_INDEX, "flags")
    op.create_index(_INDEX, "flags", [*_FILTERED, "place"])


def downgrade() -> None:
    op.drop_index(_INDEX, "flags")
    with op.batch_alter_table("flags") as flags:
        flags.drop_column("place")
    op.create_index(_INDEX, "flags", _FILTERED)
