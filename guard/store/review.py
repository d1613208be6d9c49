"""What people look for among flags, and what they say of them. Owns filters, pages, labels and
deletion. Flags are written in flags.py; who may do what is the server's business.
"""

import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from guard.errors import FlagUnknown
from guard.policy import Action
from guard.store import audit, search
from guard.store.flags import Review, StoredFlag, stored
from guard.store.store import Store
from guard.store.tables import FlagCategoryRow, FlagRow, RunFlagRow
from guard.store.text import storable

Status = Literal["open", "confirmed", "dismissed"]
"""What a reviewer said of a flag; open: nothing yet."""

_EXPORTED_AT_ONCE = 500
_DELETED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which flags; all conditions that are given hold.

    since, until: flagged at or after, and before. harm_from, harm_to: P(harmful), both included.
    text: words, or beginnings of words, that are all in the conversation, the answer or the
    revision. before_id: with a lower number. id: that one alone.
    """

    since: datetime | None = None
    until: datetime | None = None
    category: str | None = None
    adapter: str | None = None
    action: Action | None = None
    status: Status | None = None
    harm_from: float | None = None
    harm_to: float | None = None
    text: str | None = None
    request_id: str | None = None
    user_hash: str | None = None
    before_id: int | None = None
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a person says of a flag.

    category: the right one. answer: what should have been answered. note: anything to remember.
    """

    review: Review
    category: str | None = None
    answer: str | None = None
    note: str | None = None


class ReviewStore(Store):
    """The flags of one database, for people. Every method raises StoreUnavailable when the
    database fails."""

    async def get(self, number: int) -> StoredFlag:
        """The flag of that number. Raises FlagUnknown."""
        async with self._transaction() as session:
            return stored(await _row(session, number))

    async def page(self, which: Filter, limit: int) -> list[StoredFlag]:
        """At most `limit` flags, newest first; the next page is that before the last one's id."""
        async with self._transaction() as session:
            # First the numbers, from the indexes alone; then no more flags than are wanted.
            numbers = _numbers(session, which, limit)
            query = select(FlagRow).where(FlagRow.id.in_(numbers)).order_by(FlagRow.id.desc())
            return [stored(row) for row in await session.scalars(query)]

    async def export(
        self, which: Filter, at_once: int = _EXPORTED_AT_ONCE
    ) -> AsyncIterator[StoredFlag]:
        """All of them, newest first; `at_once` are held at a time."""
        while flags := await self.page(which, at_once):
            for flag in flags:
                yield flag
            which = replace(which, before_id=flags[-1].id)

    async def label(self, numbers: Sequence[int], label: Label, reviewer: str) -> list[StoredFlag]:
        """Records what a person said, over all that was said before; of all of them or of none.

        Raises FlagUnknown.
        """
        said = storable(
            {
                "review": label.review,
                "reviewer": reviewer,
                "corrected_category": label.category,
                "corrected_answer": label.answer,
                "note": label.note,
            }
        )
        async with self._transaction() as session:
            rows = [await _row(session, number) for number in dict.fromkeys(numbers)]
            for row in rows:
                for name, value in said.items():
                    setattr(row, name, value)
                row.reviewed_at = datetime.now(UTC)
                details = {"review": label.review, "category": label.category}
                audit.record(session, reviewer, "flag.labelled", f"flag {row.id}", **details)
            return [stored(row) for row in rows]

    async def delete_one(self, number: int, by: str) -> None:
        """Deletes one flag for good. Raises FlagUnknown."""
        if not await self.delete(Filter(id=number), by):
            raise _unknown(number)

    async def delete(self, which: Filter, by: str) -> list[int]:
        """Deletes them for good and returns their numbers; adapters trained on them stay."""
        deleted: list[int] = []
        while True:
            async with self._transaction() as session:
                numbers: list[int] = [
                    *await session.scalars(_numbers(session, which, _DELETED_AT_ONCE))
                ]
                if not numbers:
                    return deleted
                await search.forget(session, numbers)
                # Its categories go with it.
                await session.execute(delete(RunFlagRow).where(RunFlagRow.flag_id.in_(numbers)))
                await session.execute(delete(FlagRow).where(FlagRow.id.in_(numbers)))
                newest, oldest = numbers[0], numbers[-1]
                subject = f"flags {oldest} to {newest}"
                audit.record(session, by, "flags.deleted", subject, count=len(numbers))
            deleted += numbers


async def _row(session: AsyncSession, number: int) -> FlagRow:
    row = await session.get(FlagRow, number)
    if row is None:
        raise _unknown(number)
    return row


def _unknown(number: int) -> FlagUnknown:
    return FlagUnknown(f"There is no flag {number}; `setback flags list` shows those there are")


def _numbers(session: AsyncSession, which: Filter, limit: int) -> Select[int]:
    numbers = select(FlagRow.id).where(*_conditions(session, which))
    return numbers.order_by(FlagRow.id.desc()).limit(limit)


def _conditions(session: AsyncSession, which: Filter) -> Iterator[ColumnElement[bool]]:
    # As flags are stored: no database takes a NUL in what is compared either.
    compared: list[tuple[Any, Callable[[Any, Any], Any], Any]] = [
        (FlagRow.created_at, operator.ge, which.since),
        (FlagRow.created_at, operator.lt, which.until),
        (FlagRow.adapter, operator.eq, storable(which.adapter)),
        (FlagRow.action, operator.eq, which.action),
        (FlagRow.harm, operator.ge, which.harm_from),
        (FlagRow.harm, operator.le, which.harm_to),
        (FlagRow.request_id, operator.eq, storable(which.request_id)),
        (FlagRow.user_hash, operator.eq, storable(which.user_hash)),
        (FlagRow.id, operator.lt, which.before_id),
        (FlagRow.id, operator.eq, which.id),
    ]
    yield from (holds(column, given) for column, holds, given in compared if given is not None)
    if which.status is not None:
        yield FlagRow.review == (None if which.status == "open" else which.status)
    if which.category is not None:
        named = select(FlagCategoryRow.flag_id).where(FlagCategoryRow.category == which.category)
        yield FlagRow.id.in_(named)
    if which.text is not None:
        yield search.found(session, FlagRow.id, which.text)
