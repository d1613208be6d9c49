"""The store's tables. Owns the schema; its history is in migrations/, its queries in flags.py."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Index, Integer, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware on both sides; SQLite alone would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored; use datetime.now(UTC)")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can name it too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, datetime: UtcDateTime, list[Any]: JSON, dict[str, Any]: JSON}


class FlagRow(Base):
    """One withheld or annotated answer. See flags.Flag for what each field means.

    Nothing but `id` is unique: a client may send the same x-request-id twice, and both flags count.
    """

    __tablename__ = "flags"
    __table_args__ = (Index(None, "created_at"), Index(None, "request_id"))

    # SQLite counts up by itself only in a column of the exact type INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    created_at: Mapped[datetime]
    request_id: Mapped[str]
    route: Mapped[str]
    choice: Mapped[int]
    messages: Mapped[list[Any]]
    answer: Mapped[str]
    harm: Mapped[float]
    category_scores: Mapped[dict[str, Any]]
    categories: Mapped[list[Any]]
    action: Mapped[str]
    adapter: Mapped[str]
    model: Mapped[str]
    model_revision: Mapped[str]
    policy_hash: Mapped[str]
    prompt_version: Mapped[str]
    user_hash: Mapped[str | None]


class SecretRow(Base):
    """A random value all server processes share; the first migration makes `user_salt`."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
