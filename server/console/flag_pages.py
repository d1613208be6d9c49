"""/console/flags: the review queue, the page of one flag, and labelling. Owns these pages. Filters
and labels are validated as in routes/flags.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Path, Request, Response
from pydantic import ValidationError, field_validator, model_validator

from guard.adapters import Adapters, adapter_name
from guard.criteria import Place
from guard.errors import GuardError
from guard.policy import Action
from guard.store.flags import StoredFlag
from guard.store.review import Filter
from server.auth.access import Caller
from server.auth.sessions import CONSOLE, FLAGS
from server.console.view import PageRoute, page, redirect, without_empty
from server.errors import BadRequest
from server.guarded.conversation import text_of
from server.guarded.request import bad_field
from server.routes.checked import Id
from server.routes.flags import FlagLabel, FlagList, Reviews
from server.routes.moderations import ModerationRequest, Moderator, Turn
from server.routes.policies import InForce

_DATE_FIELDS = frozenset({"since", "until"})
_MIDNIGHT_UTC = "T00:00:00Z"
_EXCERPT_LENGTH = 160
_PLACES = {"output": "answers", "input": "requests", "tool_result": "tools and documents"}
"""What the queue calls the places of flags."""


class _LabelForm(FlagLabel):
    """A label from a form, where empty fields are left out and lines end with CRLF."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, form: dict[str, Any]) -> dict[str, Any]:
        return without_empty(form)

    @field_validator("answer", "note")
    @classmethod
    def _plain_lines(cls, text: str | None) -> str | None:
        return text and text.replace("\r\n", "\n")


router = APIRouter(prefix="/console/flags", route_class=PageRoute, include_in_schema=False)


@router.get("")
async def queue(request: Request, reviews: Reviews) -> Response:
    """Shows a page of flags, newest first."""
    fields = without_empty(request.query_params)
    conditions = {name: value for name, value in fields.items() if name != "said"}
    query, problem = _parse_filter(conditions)
    rows = await reviews.page(query.conditions(query.after), query.limit + 1)
    flags = rows[: query.limit]
    more = {**conditions, "after": flags[-1].id} if len(rows) > len(flags) else None
    return page(
        request,
        "flags.html",
        flags=[(flag, _excerpt(flag)) for flag in flags],
        given=fields,
        problem=problem,
        more=more and urlencode(more),
        actions=[action.value for action in Action],
        places=_PLACES,
        names=request.app.state.setback.policies.current.names,
    )


@router.get("/{flag_id}")
async def show(
    request: Request, reviews: Reviews, policies: InForce, flag_id: Annotated[Id, Path()]
) -> Response:
    """Shows one flag and the form to label it."""
    flag = await reviews.get(flag_id)
    scores = sorted(flag.category_scores.items(), key=lambda item: -item[1])
    said = request.query_params.get("said")
    next_flag = await _next_open(reviews, flag_id)
    return page(
        request,
        "flag.html",
        flag=flag,
        scores=scores,
        said=said,
        following=next_flag,
        names=policies.names,
    )


@router.get("/{flag_id}/analysis")
async def analysis(request: Request, reviews: Reviews, flag_id: Annotated[Id, Path()]) -> Response:
    """Shows the active model's analysis of the answer, as a part of a page."""
    flag = await reviews.get(flag_id)
    if flag.place is not Place.OUTPUT:
        return page(request, "analysis.html", problem="The model explains flagged answers only.")
    state = request.app.state.setback
    adapters: Adapters = state.adapters
    try:
        with adapters.use() as lora_request:
            (result,) = await _moderator(request).results(
                _conversation(flag), state.policies.current.default, lora_request
            )
    except GuardError as error:
        return page(request, "analysis.html", problem=str(error))
    except BadRequest as error:
        return page(request, "analysis.html", problem=error.message)
    by = adapter_name(lora_request)
    return page(request, "analysis.html", problem=None, text=result["analysis"], by=by)


@router.post("/{flag_id}/label")
async def label(
    request: Request,
    reviews: Reviews,
    policies: InForce,
    by: Caller,
    flag_id: Annotated[Id, Path()],
    form: Annotated[_LabelForm, Form()],
) -> Response:
    """Stores the reviewer's label, and goes on to the next open flag."""
    await reviews.label([flag_id], form.label(policies), by)
    next_flag = await _next_open(reviews, flag_id)
    message = urlencode({"said": f"Flag {flag_id} is {form.review}."})
    if next_flag is None:
        return redirect(request, f"{FLAGS}&{message}")
    return redirect(request, f"{CONSOLE}/flags/{next_flag}?{message}")


def _parse_filter(conditions: Mapping[str, str]) -> tuple[FlagList, str | None]:
    """Returns the filter, or a filter for all flags and what is wrong with the given one."""
    days = {name: conditions[name] + _MIDNIGHT_UTC for name in _DATE_FIELDS & conditions.keys()}
    try:
        return FlagList.model_validate({**conditions, **days}), None
    except ValidationError as error:
        return FlagList(), bad_field(error).message


async def _next_open(reviews: Any, number: int) -> int | None:
    """Returns the number of the next flag to review."""
    open_flags = await reviews.page(Filter(status="open", before_id=number), 1)
    return open_flags[0].id if open_flags else None


def _excerpt(flag: StoredFlag) -> str:
    """Returns the beginning of the last user message, never of the answer."""
    user_turns = [message for message in flag.messages if message.get("role") == "user"]
    text = " ".join(text_of(user_turns[-1].get("content")).split()) if user_turns else ""
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]}…"


def _conversation(flag: StoredFlag) -> ModerationRequest:
    turns = [
        Turn(role=str(message.get("role")), content=text_of(message.get("content")))
        for message in flag.messages
    ]
    answer = Turn(role="assistant", content=flag.answer)
    return ModerationRequest(messages=[*turns, answer], explain=True)


def _moderator(request: Request) -> Moderator:
    moderator: Moderator = request.app.state.setback.moderator
    return moderator
