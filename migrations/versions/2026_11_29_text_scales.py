"""Calibrations of free-standing texts, apart from those of answers. Earlier ones were of both.

Revision: 2026_11_29_text_scales
Revises: 2026_11_29_rollouts
Created: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_29_text_scales"
down_revision = "2026_11_29_rollouts"
branch_labels = None
depends_on = None

_NAMES = ("slope", "intercept")


def upgrade() -> None:
    with op.batch_alter_table("calibrations") as table:
        for name in _NAMES:
            table.add_column(sa.Column(f"text_{name}", sa.Double(), nullable=True))
    op.execute("UPDATE calibrations SET text_slope = slope, text_intercept = intercept")
    with op.batch_alter_table("calibrations") as table:
        for name in _NAMES:
            table.alter_column(f"text_{name}", existing_type=sa.Double(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("calibrations") as table:
        for name in _NAMES:
            table.drop_column(f"text_{name}")
