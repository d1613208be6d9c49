"""Writing flags, and reading them to learn from. Owns what a flag holds and its durability.

add() returns only after the commit. Does not decide what is flagged (see policy.py). What people
look for among flags and say of them is in review.py.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import URL, ColumnElement, Select, and_, or_, select

from guard.errors import StoreUnavailable
from guard.policy import Action
from guard.store import search
from guard.store.store import Store
from guard.store.tables import FlagCategoryRow, FlagRow, RunFlagRow, RunRow, SecretRow
from guard.store.text import storable
from guard.tasks import spawn

Review = Literal["confirmed", "dismissed"]
"""What a reviewer can say of a flag: harmful indeed, or fine after all."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One answer that reached a threshold of the policy.

    route: the path called, e.g. "/v1/chat/completions". choice: its index when n > 1.
    messages: the conversation as received, each {"role", "content"}; a raw prompt is one user turn.
    answer: the draft, which the client may never have seen, as far as it was judged.
    released_chars: how many of its characters were let out before it was flagged.
    revision: the model's own other answer, which was let out instead; None for a refusal.
    harm, category_scores, categories: the verdict, and the categories that reached a threshold.
    adapter, model, model_revision, policy_hash, prompt_version: all that decided it.
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
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class StoredFlag(Flag):
    """A flag with the number the store gave it; later ones have higher numbers.

    review, reviewer, reviewed_at: what a person said of it, or None.
    corrected_category, corrected_answer: what a person said it should have been. note: and why.
    """

    id: int
    review: Review | None = None
    reviewer: str | None = None
    reviewed_at: datetime | None = None
    corrected_category: str | None = None
    corrected_answer: str | None = None
    note: str | None = None


def hash_user(user: str, salt: str) -> str:
    """HMAC-SHA256 in hex: tells users apart without saying who they are."""
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

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self._writes: set[asyncio.Task[int]] = set()

    async def add(self, flag: Flag) -> int:
        """The number of the flag, committed. A caller that is cancelled meanwhile loses nothing."""
        write = spawn(self._write(flag))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self, flag: Flag) -> int:
        row = FlagRow(**{**storable(vars(flag)), "created_at": flag.created_at})
        async with self._transaction() as session:
            session.add(row)
            await session.flush()
            for category in dict.fromkeys(row.categories):
                session.add(FlagCategoryRow(category=category, flag_id=row.id))
            written = search.text_of(row.messages, row.answer, row.revision)
            await search.index(session, row.id, written)
        return row.id

    async def get(self, number: int) -> StoredFlag | None:
        """The flag of that number, or None."""
        async with self._transaction() as session:
            row = await session.get(FlagRow, number)
        return None if row is None else stored(row)

    async def unlearned(self, limit: int) -> list[StoredFlag]:
        """At most `limit` flags that no promoted run took as they are labelled now, oldest first;
        dismissed ones too."""
        query = select(FlagRow).where(~_taken()).order_by(FlagRow.id).limit(limit)
        return await self._read(query)

    async def held_out(self) -> list[StoredFlag]:
        """The flags that promoted runs set aside to be measured by, oldest first."""
        aside = _taken(RunFlagRow.use == "held_out")
        return await self._read(select(FlagRow).where(aside).order_by(FlagRow.id))

    async def reviews(self) -> dict[int, Review | None]:
        """What was said of every flag that there is."""
        async with self._transaction() as session:
            rows = await session.execute(select(FlagRow.id, FlagRow.review))
            # Only labels are written there.
            return dict(iter(rows))  # type: ignore[arg-type]

    async def _read(self, query: Select[FlagRow]) -> list[StoredFlag]:
        async with self._transaction() as session:
            return [stored(row) for row in await session.scalars(query)]

    async def user_salt(self) -> str:
        """The salt for hash_user that all processes on this database share."""
        return await self._secret("user_salt", "set SETBACK_USER_SALT instead")

    async def refine_token(self) -> str:
        """What a caller of the refine routes must show; who reads the database may call them."""
        return await self._secret("refine_token", "put any long random value there")

    async def console_secret(self) -> str:
        """What the console's sessions are signed with, in all processes on this database."""
        return await self._secret("console_secret", "put any long random value there")

    async def _secret(self, name: str, fix: str) -> str:
        async with self._transaction() as session:
            row = await session.get(SecretRow, name)
        if row is None:
            raise StoreUnavailable(f"The {name} is gone from the table `secrets`; {fix}")
        return row.value

    async def close(self) -> None:
        """Closes the connections once the writes under way are committed."""
        if self._writes:
            await asyncio.wait(self._writes)
        await super().close()


def _taken(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a promoted run took the flag, in a way that meets `conditions`, and nobody has found
    it wrong since."""
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
    """The flag in a row."""
    values = {name.name: getattr(row, name.name) for name in fields(StoredFlag)}
    values["categories"] = tuple(row.categories)
    values["action"] = Action(row.action)
    return StoredFlag(**values)
