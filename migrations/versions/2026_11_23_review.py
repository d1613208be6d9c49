"""Review: corrections, and what lists and searches of many flags need.

Revision: 2026_11_23_review
Revises: 2026_11_23_streams
Created: 2026-11-23
"""

import json
import re
import unicodedata
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_review"
down_revision = "2026_11_23_streams"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_BATCH = 500
_CORRECTIONS = ("corrected_category", "corrected_answer", "note")
_FILTERED = ["id", "created_at", "harm", "action", "adapter", "review", "user_hash"]


def upgrade() -> None:
    for name in _CORRECTIONS:
        op.add_column("flags", sa.Column(name, sa.Text(), nullable=True))
    # All that lists filter by, so that no filter has to read the flags themselves.
    op.create_index("ix_flags_filter", "flags", _FILTERED)
    op.create_table(
        "flag_categories",
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("flag_id", _NUMBER, nullable=False),
        sa.ForeignKeyConstraint(
            ["flag_id"],
            ["flags.id"],
            name="fk_flag_categories_flag_id_flags",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("category", "flag_id", name="pk_flag_categories"),
    )
    op.create_index("ix_flag_categories_flag_id", "flag_categories", ["flag_id"])
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE flag_search USING fts5("
            "words, detail='none', prefix='2 3', tokenize='unicode61 remove_diacritics 0')"
        )
    else:
        op.execute(
            "CREATE TABLE flag_search (flag_id BIGINT PRIMARY KEY "
            "REFERENCES flags (id) ON DELETE CASCADE, words TSVECTOR NOT NULL)"
        )
        op.execute("CREATE INDEX ix_flag_search_words ON flag_search USING gin (words)")
    _index_flags_there_are()


def downgrade() -> None:
    op.drop_table("flag_search")
    op.drop_table("flag_categories")
    op.drop_index("ix_flags_filter", "flags")
    with op.batch_alter_table("flags") as flags:
        for name in reversed(_CORRECTIONS):
            flags.drop_column(name)


def _index_flags_there_are() -> None:
    bind = op.get_bind()
    add = (
        "INSERT INTO flag_search (rowid, words) VALUES (:flag, :words)"
        if bind.dialect.name == "sqlite"
        else "INSERT INTO flag_search (flag_id, words) "
        "VALUES (:flag, array_to_tsvector(string_to_array(:words, ' ')))"
    )
    last = 0
    read = sa.text(
        "SELECT id, CAST(messages AS TEXT), answer, revision, CAST(categories AS TEXT) "
        "FROM flags WHERE id > :last ORDER BY id LIMIT :batch"
    )
    while rows := bind.execute(read, {"last": last, "batch": _BATCH}).all():
        last = rows[-1][0]
        named = [
            {"category": category, "flag": flag}
            for flag, *_, categories in rows
            for category in dict.fromkeys(json.loads(categories))
        ]
        if named:
            bind.execute(
                sa.text(
                    "INSERT INTO flag_categories (category, flag_id) VALUES (:category, :flag)"
                ),
                named,
            )
        bind.execute(
            sa.text(add),
            [
                {"flag": flag, "words": _words([*_strings(json.loads(said)), answer, other or ""])}
                for flag, said, answer, other, _ in rows
            ],
        )


def _words(written: list[str]) -> str:
    plain = unicodedata.normalize("NFKC", "\n".join(written)).casefold()
    words = dict.fromkeys(word[:64] for word in re.findall(r"[^\W_]+", plain))
    return " ".join(words)[:200_000]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("role", "type"):
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
