"""For the console: runs can be cancelled, traffic is counted by the minute, sessions have a secret.

Revision: 2026_11_24_console
Revises: 2026_11_23_keys
Created: 2026-11-24
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_console"
down_revision = "2026_11_23_keys"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("cancelled_by", sa.Text(), nullable=True))
    op.create_table(
        "traffic",
        sa.Column("minute", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("flagged", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("overhead_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("minute", name="pk_traffic"),
    )
    values = sa.table("secrets", sa.column("name", sa.Text()), sa.column("value", sa.Text()))
    op.bulk_insert(values, [{"name": "console_secret", "value": secrets.token_hex(32)}])


def downgrade() -> None:
    op.execute("DELETE FROM secrets WHERE name = 'console_secret'")
    op.drop_table("traffic")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("cancelled_by")
