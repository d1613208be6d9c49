"""Writing flags, and reading them for training. Owns what a flag holds and its durability: add()
returns only after the commit. Does not decide what is flagged (policy.py) or how people search and
label flags (review.py).
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import URL, ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from guard.criteria import Place
from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store import search
from guard.store.store import Store, from_row
from guard.store.tables import (
    FLAG_NUMBERS,
    FlagCategoryRow,
    FlagRow,
    RunFlagRow,
    RunRow,
    SecretRow,
)
from guard.store.text import storable
from guard.tasks import spawn

Review = Literal["confirmed", "dismissed"]
"""A reviewer's label: harmful indeed, or a false alarm."""

FlagPlace = Literal["output", "input", "tool_result"]
"""The places that a flag may have: a flagged tool call is a part of its answer."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One answer, or one input, that reached a threshold of the policy.

    route: the path called, e.g. "/v1/chat/completions".
    place: where it was flagged: in the answer, in what was asked, or in what tools and documents
    say. Of an input the conversation has the flagged text, and there is no answer.
    choice: the answer's index when n > 1.
    messages: the conversation as received, with placeholders where the policy masks requests, each
    {"role", "content"}; a raw prompt is one user turn.
    answer: the draft as far as it was judged; the client may not have seen it.
    released_chars: how many of its characters were sent before it was flagged.
    revision: the model's own revision, sent instead; None for a refusal.
    harm, category_scores, categories: the verdict, and the categories that reached a threshold.
    adapter, model, model_revision, policy_hash, prompt_version: what the verdict depends on.
    user_hash: see hash_user; None when the request named no user.
    """

    request_id: str
    route: str
    choice: int
    messages: Sequence[Mapping[str, object]]
    answer: str
    harm: float
    category_scores: Mapping[str, float]
    categories: tuple[str, ...]
    action: Action
    adapter: str
    model: str
    model_revision: str
    policy_hash: str
    prompt_version: str
    released_chars: int = 0
    revision: str | None = None
    user_hash: str | None = None
    place: Place = Place.OUTPUT
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class StoredFlag(Flag):
    """A flag with the number that the store gave it; later flags have higher numbers.

    review, reviewer, reviewed_at: a person's label, or None.
    corrected_category, corrected_answer: the person's corrections. note: the person's remark.
    """

    id: int
    review: Review | None = None
    reviewer: str | None = None
    reviewed_at: datetime | None = None
    corrected_category: str | None = None
    corrected_answer: str | None = None
    note: str | None = None


def hash_user(user: str, salt: str) -> str:
    """Returns the HMAC-SHA256 in hex: it distinguishes users without revealing who they are."""
    return hmac.new(
        salt.encode(), user.encode("utf-8", "surrogatepass"), hashlib.sha256
    ).hexdigest()


class FlagStore(Store):
    """The flags in one database. Every method raises StoreUnavailable when the database fails.

    Usage:
        store = FlagStore(parse_url("sqlite:///data/setback.db"))
        await store.check()
        number = await store.add(flag)
        await store.close()
    """

    def __init__(self, url: URL, engine: AsyncEngine | None = None) -> None:
        super().__init__(url, engine)
        self._writes: set[asyncio.Task[int]] = set()

    async def add(self, flag: Flag) -> int:
        """Commits a flag and returns its number. The commit survives the caller's cancellation."""
        write = spawn(self._write(flag))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self, flag: Flag) -> int:
        row = FlagRow(**{**storable(vars(flag)), "created_at": flag.created_at})
        async with self._transaction() as session:
            if self._url.get_backend_name() == "sqlite":
                row.id = await session.scalar(_next_number())
            session.add(row)
            await session.flush()
            for category in dict.fromkeys(row.categories):
                session.add(FlagCategoryRow(category=category, flag_id=row.id))
            written = search.text_of(row.messages, row.answer, row.revision)
            await search.index(session, row.id, written)
        return row.id

    async def get(self, number: int) -> StoredFlag | None:
        """Returns the flag with that number, or None."""
        async with self._reading() as session:
            row = await session.get(FlagRow, number)
        return None if row is None else stored(row)

    async def unlearned(self, limit: int) -> list[StoredFlag]:
        """Returns at most `limit` flags of answers, oldest first, including dismissed ones, that no
        promoted run used with their current label."""
        query = select(FlagRow).where(FlagRow.place == Place.OUTPUT, ~_taken())
        return await self._read(query.order_by(FlagRow.id).limit(limit))

    async def held_out(self) -> list[StoredFlag]:
        """Returns the flags that promoted runs held out for evaluation, oldest first."""
        aside = _taken(RunFlagRow.use == "held_out")
        return await self._read(select(FlagRow).where(aside).order_by(FlagRow.id))

    async def reviews(self) -> dict[int, Review | None]:
        """Returns the label of every flag, by number."""
        async with self._reading() as session:
            rows = await session.execute(select(FlagRow.id, FlagRow.review))
            # Only labels are written there.
            return dict(iter(rows))  # type: ignore[arg-type]

    async def _read(self, query: Select[FlagRow]) -> list[StoredFlag]:
        async with self._reading() as session:
            return [stored(row) for row in await session.scalars(query)]

    async def user_salt(self) -> str:
        """Returns the salt for hash_user, shared by all processes on this database."""
        return await self._secret("user_salt", "set SETBACK_USER_SALT instead")

    async def refine_token(self) -> str:
        """Returns the token for the refine routes; read access to the database is enough for it."""
        return await self._secret("refine_token", "put any long random value there")

    async def console_secret(self) -> str:
        """Returns the key that signs console sessions, shared by all processes on this database."""
        return await self._secret("console_secret", "put any long random value there")

    async def _secret(self, name: str, fix: str) -> str:
        async with self._reading() as session:
            row = await session.get(SecretRow, name)
        if row is None:
            raise StoreUnavailable(f"The {name} is gone from the table `secrets`; {fix}")
        return row.value

    async def close(self) -> None:
        """Closes the connections once pending writes are committed."""
        if self._writes:
            await asyncio.wait(self._writes)
        await super().close()


def _next_number() -> Any:
    """Returns the statement that takes a number which no flag has had."""
    highest = select(func.coalesce(func.max(FlagRow.id), 0)).scalar_subquery()
    last = FLAG_NUMBERS.c.last
    return update(FLAG_NUMBERS).values(last=func.max(last, highest) + 1).returning(last)


def _taken(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a promoted run used the flag, in a way that meets `conditions`, and no one corrected
    the flag since."""
    unchanged = or_(
        FlagRow.reviewed_at.is_(None),
        FlagRow.reviewed_at <= RunRow.created_at,
        and_(
            FlagRow.review != "dismissed",
            FlagRow.corrected_answer.is_(None),
            FlagRow.corrected_category.is_(None),
        ),
    )
    return (
        select(RunFlagRow.flag_id)
        .join(RunRow, RunRow.id == RunFlagRow.run_id)
        .where(
            RunFlagRow.flag_id == FlagRow.id, RunRow.status == "promoted", unchanged, *conditions
        )
        .exists()
    )


def stored(row: FlagRow) -> StoredFlag:
    """Returns the flag in a row."""
    return replace(
        from_row(StoredFlag, row),
        categories=tuple(row.categories),
        action=Action(row.action),
        place=Place(row.place),
    )
