"""How people search and label flags. Owns filters, pages, labels and deletion. Does not write flags
(flags.py) or check who may do what (server/auth).
"""

import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from guard.criteria import Place
from guard.errors import FlagUnknown
from guard.policy import Action
from guard.store import audit, search
from guard.store.flags import Review, StoredFlag, stored
from guard.store.store import Store
from guard.store.tables import FlagCategoryRow, FlagRow, RunFlagRow
from guard.store.text import storable

Status = Literal["open", "confirmed", "dismissed"]
"""A flag's label; open: it has none yet."""

_EXPORTED_AT_ONCE = 500
_DELETED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which flags to select. All given conditions must hold.

    since, until: flagged at or after, and before. harm_from, harm_to: P(harmful), both inclusive.
    text: words or word prefixes that must all occur in the conversation, the answer or the
    revision. before_id: with a lower number. id: only that flag.
    """

    since: datetime | None = None
    until: datetime | None = None
    category: str | None = None
    adapter: str | None = None
    action: Action | None = None
    place: Place | None = None
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
    """A person's label of a flag.

    category: the correct category. answer: the correct answer. note: a remark.
    """

    review: Review
    category: str | None = None
    answer: str | None = None
    note: str | None = None


class ReviewStore(Store):
    """The flags of one database, for reviewers. Every method raises StoreUnavailable when the
    database fails."""

    async def get(self, number: int) -> StoredFlag:
        """Returns the flag with that number. Raises FlagUnknown."""
        async with self._reading() as session:
            return stored(await _row(session, number))

    async def page(self, which: Filter, limit: int) -> list[StoredFlag]:
        """Returns at most `limit` flags, newest first. For the next page, set before_id."""
        async with self._reading() as session:
            # The numbers first, from the indexes alone, then only the flags on the page.
            numbers = _numbers(session, which, limit)
            query = select(FlagRow).where(FlagRow.id.in_(numbers)).order_by(FlagRow.id.desc())
            return [stored(row) for row in await session.scalars(query)]

    async def export(
        self, which: Filter, at_once: int = _EXPORTED_AT_ONCE
    ) -> AsyncIterator[StoredFlag]:
        """Yields all matching flags, newest first, reading `at_once` at a time."""
        while flags := await self.page(which, at_once):
            for flag in flags:
                yield flag
            which = replace(which, before_id=flags[-1].id)

    async def label(self, numbers: Sequence[int], label: Label, reviewer: str) -> list[StoredFlag]:
        """Labels all the flags or none, replacing earlier labels.

        Raises FlagUnknown.
        """
        values = storable(
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
                for name, value in values.items():
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
        """Deletes matching flags for good and returns their numbers. Adapters are unaffected."""
        deleted: list[int] = []
        while True:
            async with self._transaction() as session:
                numbers: list[int] = [
                    *await session.scalars(_numbers(session, which, _DELETED_AT_ONCE))
                ]
                if not numbers:
                    return deleted
                await search.remove(session, numbers)
                # The database deletes their categories with them.
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
    return FlagUnknown(f"There is no flag {number}; `setback flags list` lists them")


def _numbers(session: AsyncSession, which: Filter, limit: int) -> Select[int]:
    numbers = select(FlagRow.id).where(*_conditions(session, which))
    return numbers.order_by(FlagRow.id.desc()).limit(limit)


def _conditions(session: AsyncSession, which: Filter) -> Iterator[ColumnElement[bool]]:
    # Values as they are stored: databases reject a NUL in comparisons too.
    conditions: list[tuple[Any, Callable[[Any, Any], Any], Any]] = [
        (FlagRow.created_at, operator.ge, which.since),
        (FlagRow.created_at, operator.lt, which.until),
        (FlagRow.adapter, operator.eq, storable(which.adapter)),
        (FlagRow.action, operator.eq, which.action),
        (FlagRow.place, operator.eq, which.place),
        (FlagRow.harm, operator.ge, which.harm_from),
        (FlagRow.harm, operator.le, which.harm_to),
        (FlagRow.request_id, operator.eq, storable(which.request_id)),
        (FlagRow.user_hash, operator.eq, storable(which.user_hash)),
        (FlagRow.id, operator.lt, which.before_id),
        (FlagRow.id, operator.eq, which.id),
    ]
    yield from (
        operation(column, value) for column, operation, value in conditions if value is not None
    )
    if which.status is not None:
        yield FlagRow.review == (None if which.status == "open" else which.status)
    if which.category is not None:
        in_category = select(FlagCategoryRow.flag_id).where(
            FlagCategoryRow.category == which.category
        )
        yield FlagRow.id.in_(in_category)
    if which.text is not None:
        yield search.matches(session, FlagRow.id, which.text)
