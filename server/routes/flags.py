"""/v1/guard/flags: listing, showing, exporting, labelling and deleting flags. Owns the requests and
responses of these routes, which follow OpenAI's lists. Does not query the database itself
(guard/store/review.py).
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from guard.criteria import NAME, Place
from guard.policies import PolicySet
from guard.policy import Action
from guard.store.flags import FlagPlace, Review, StoredFlag
from guard.store.review import Filter, Label, ReviewStore, Status
from guard.store.search import words_of
from guard.verdict import CATEGORIES
from server.auth.access import Caller
from server.errors import REFUSALS, BadRequest
from server.routes.checked import CheckedRoute, Id
from server.routes.policies import InForce

MAX_AT_ONCE = 1000
_MAX_TEXT_LENGTH = 100_000

Score = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=_MAX_TEXT_LENGTH)]


Category = Annotated[str, Field(pattern=NAME, examples=[*CATEGORIES])]
"""One of OpenAI's moderation categories, or a criterion of a policy."""


class FlagFilter(BaseModel):
    """Which flags to select. All given conditions must hold. Times are ISO 8601 with a zone."""

    model_config = ConfigDict(extra="forbid")
    since: datetime | None = Field(None, description="Flagged at this time or later.")
    until: datetime | None = Field(None, description="Flagged before this time.")
    category: Category | None = Field(
        None, description="One of OpenAI's moderation categories, or a criterion of a policy."
    )
    adapter: str | None = Field(None, description="The adapter that answered.")
    action: Action | None = Field(None, description="What the policy did.")
    place: FlagPlace | None = Field(
        None, description="What was flagged: an answer, a request, or what a tool or document says."
    )
    status: Status | None = Field(None, description="What a reviewer said.")
    min_score: Score | None = Field(None, description="P(harmful) from here on.")
    max_score: Score | None = Field(None, description="P(harmful) up to here.")
    q: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="Words, or their beginnings, that are all in the flag's text."
    )
    request_id: str | None = Field(None, description="The x-request-id.")
    user_hash: str | None = Field(None, description="As flags show it.")

    @field_validator("since", "until")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        if time is not None and time.tzinfo is None:
            raise ValueError("a time needs a zone, as in 2026-01-31T12:00:00Z")
        try:
            return time and time.astimezone(UTC)
        except OverflowError:
            raise ValueError("a time is between the years 1 and 9999 in UTC") from None

    @field_validator("q")
    @classmethod
    def _with_words(cls, text: str | None) -> str | None:
        if text is not None and not words_of(text):
            raise ValueError("search for at least one word of letters or digits")
        return text

    def conditions(self, before_id: int | None = None) -> Filter:
        """Returns the filter for the store."""
        return Filter(
            since=self.since,
            until=self.until,
            category=self.category,
            adapter=self.adapter,
            action=self.action,
            place=Place(self.place) if self.place else None,
            status=self.status,
            harm_from=self.min_score,
            harm_to=self.max_score,
            text=self.q,
            request_id=self.request_id,
            user_hash=self.user_hash,
            before_id=before_id,
        )


class FlagList(FlagFilter):
    """A page of flags, newest first."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Id | None = Field(None, description="The last_id of the page before.")


class FlagLabel(BaseModel):
    """A reviewer's label; replaces earlier labels."""

    model_config = ConfigDict(extra="forbid", strict=True)
    review: Review
    category: Category | None = Field(
        None, description="The category or criterion that it should have."
    )
    answer: Text | None = Field(None, description="What should have been answered.")
    note: Text | None = None

    def label(self, policies: PolicySet) -> Label:
        """Returns the label for the store. Raises BadRequest for a category that is none and no
        criterion of the policies either."""
        if self.category is not None and self.category not in policies.names:
            known = ", ".join(policies.names)
            raise BadRequest(f"category: unknown category; use one of {known}.", "category")
        return Label(review=self.review, category=self.category, answer=self.answer, note=self.note)


class FlagLabels(FlagLabel):
    """One label for several flags: for all of them, or for none if one does not exist."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_AT_ONCE)]


class FlagPurge(BaseModel):
    """Which flags to delete for good."""

    # Strict, so that `false` is not read as 0, which would delete all flags.
    model_config = ConfigDict(extra="forbid", strict=True)
    older_than_days: Annotated[int, Field(ge=0, le=36_500)]


def _reviews(request: Request) -> ReviewStore:
    reviews: ReviewStore = request.app.state.setback.reviews
    return reviews


Reviews = Annotated[ReviewStore, Depends(_reviews)]

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


@router.get("/flags")
async def list_flags(reviews: Reviews, query: Annotated[FlagList, Query()]) -> dict[str, Any]:
    """Lists a page of flags, newest first, in the format of OpenAI's lists."""
    flags = await reviews.page(query.conditions(query.after), query.limit + 1)
    page = flags[: query.limit]
    return {
        "object": "list",
        "data": [flag_object(flag) for flag in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(flags) > len(page),
    }


@router.get("/flags/export")
async def export_flags(
    reviews: Reviews, query: Annotated[FlagFilter, Query()]
) -> StreamingResponse:
    """Exports all matching flags, newest first, one JSON object a line."""

    async def lines() -> AsyncIterator[str]:
        async for flag in reviews.export(query.conditions()):
            yield json.dumps(flag_object(flag)) + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")


@router.get("/flags/{flag_id}")
async def show_flag(reviews: Reviews, flag_id: Annotated[Id, Path()]) -> dict[str, Any]:
    """Shows one flag with its conversation and answer."""
    return flag_object(await reviews.get(flag_id))


@router.delete("/flags/{flag_id}")
async def delete_flag(
    reviews: Reviews, by: Caller, flag_id: Annotated[Id, Path()]
) -> dict[str, Any]:
    """Deletes one flag for good. Adapters trained on it stay unchanged."""
    await reviews.delete_one(flag_id, by)
    return _deleted([flag_id])


@router.post("/flags/label")
async def label_flags(
    reviews: Reviews, policies: InForce, by: Caller, labels: FlagLabels
) -> dict[str, Any]:
    """Labels several flags at once."""
    return _labelled(await reviews.label(labels.ids, labels.label(policies), by))


@router.post("/flags/purge")
async def purge_flags(reviews: Reviews, by: Caller, purge: FlagPurge) -> dict[str, Any]:
    """Deletes old flags for good. Adapters trained on them stay unchanged."""
    until = datetime.now(UTC) - timedelta(days=purge.older_than_days)
    return _deleted(await reviews.delete(Filter(until=until), by))


@router.post("/flags/{flag_id}/label")
async def label_flag(
    reviews: Reviews,
    policies: InForce,
    by: Caller,
    flag_id: Annotated[Id, Path()],
    label: FlagLabel,
) -> dict[str, Any]:
    """Labels a flag. The refine loop trains according to the label."""
    (flag,) = await reviews.label([flag_id], label.label(policies), by)
    return flag_object(flag)


@router.delete("/users/{user_hash}")
async def forget_user(reviews: Reviews, by: Caller, user_hash: str) -> dict[str, Any]:
    """Deletes all flags of one user for good. Adapters trained on them stay unchanged."""
    return _deleted(await reviews.delete(Filter(user_hash=user_hash), by))


def flag_object(flag: StoredFlag) -> dict[str, Any]:
    """Returns a flag as JSON, with times in Unix seconds as in OpenAI's objects."""
    times = {
        "created_at": int(flag.created_at.timestamp()),
        "reviewed_at": flag.reviewed_at and int(flag.reviewed_at.timestamp()),
    }
    return {"object": "guard.flag", "id": flag.id, **asdict(flag), **times}


def _labelled(flags: Sequence[StoredFlag]) -> dict[str, Any]:
    return {"object": "list", "data": [flag_object(flag) for flag in flags]}


def _deleted(numbers: Sequence[int]) -> dict[str, Any]:
    return {"object": "guard.flags.deleted", "deleted": len(numbers)}
