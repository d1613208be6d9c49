"""/console/flags: the queue, one flag with all that is known of it, and what a reviewer says. Owns
these pages; what they show and take is checked as in routes/flags.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Path, Request, Response
from pydantic import ValidationError, field_validator, model_validator

from guard.adapters import Adapters, adapter_name
from guard.errors import GuardError
from guard.policy import Action
from guard.store.flags import StoredFlag
from guard.store.review import Filter
from server.auth.access import Caller
from server.auth.sessions import CONSOLE, FLAGS
from server.console.view import PageRoute, filled, page, see
from server.errors import BadRequest
from server.guarded.request import bad_field, text_of
from server.routes.checked import Id
from server.routes.flags import FlagLabel, FlagList, Reviews
from server.routes.moderations import ModerationRequest, Moderator, Turn

_DAYS = frozenset({"since", "until"})
_DAY_BEGINS = "T00:00:00Z"
_EXCERPT = 160


class _Said(FlagLabel):
    """A label from a form, where empty fields say nothing and lines end with two characters."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, form: dict[str, Any]) -> dict[str, Any]:
        return filled(form)

    @field_validator("answer", "note")
    @classmethod
    def _plain_lines(cls, text: str | None) -> str | None:
        return text and text.replace("\r\n", "\n")


router = APIRouter(prefix="/console/flags", route_class=PageRoute, include_in_schema=False)


@router.get("")
async def queue(request: Request, reviews: Reviews) -> Response:
    """A page of flags, newest first."""
    given = filled(request.query_params)
    conditions = {name: value for name, value in given.items() if name != "said"}
    asked, problem = _asked(conditions)
    found = await reviews.page(asked.conditions(asked.after), asked.limit + 1)
    flags = found[: asked.limit]
    more = {**conditions, "after": flags[-1].id} if len(found) > len(flags) else None
    return page(
        request,
        "flags.html",
        flags=[(flag, _excerpt(flag)) for flag in flags],
        given=given,
        problem=problem,
        more=more and urlencode(more),
        actions=[action.value for action in Action],
    )


@router.get("/{flag_id}")
async def show(request: Request, reviews: Reviews, flag_id: Annotated[Id, Path()]) -> Response:
    """One flag, and the form to say what is right."""
    flag = await reviews.get(flag_id)
    scores = sorted(flag.category_scores.items(), key=lambda item: -item[1])
    said = request.query_params.get("said")
    following = await _next_open(reviews, flag_id)
    return page(request, "flag.html", flag=flag, scores=scores, said=said, following=following)


@router.get("/{flag_id}/analysis")
async def analysis(request: Request, reviews: Reviews, flag_id: Annotated[Id, Path()]) -> Response:
    """What the model that is in force says of the answer; part of a page."""
    flag = await reviews.get(flag_id)
    state = request.app.state.setback
    adapters: Adapters = state.adapters
    try:
        with adapters.use() as lora_request:
            (result,) = await _moderator(request).results(_conversation(flag), lora_request)
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
    by: Caller,
    flag_id: Annotated[Id, Path()],
    said: Annotated[_Said, Form()],
) -> Response:
    """Keeps what a reviewer said, and goes on to the next open flag."""
    await reviews.label([flag_id], said.label, by)
    following = await _next_open(reviews, flag_id)
    done = urlencode({"said": f"Flag {flag_id} is {said.review}."})
    if following is None:
        return see(request, f"{FLAGS}&{done}")
    return see(request, f"{CONSOLE}/flags/{following}?{done}")


def _asked(conditions: Mapping[str, str]) -> tuple[FlagList, str | None]:
    """The filter, or all flags and what was wrong with it."""
    days = {name: conditions[name] + _DAY_BEGINS for name in _DAYS & conditions.keys()}
    try:
        return FlagList.model_validate({**conditions, **days}), None
    except ValidationError as error:
        return FlagList(), bad_field(error).message


async def _next_open(reviews: Any, number: int) -> int | None:
    """The flag that is to be reviewed after that one."""
    waiting = await reviews.page(Filter(status="open", before_id=number), 1)
    return waiting[0].id if waiting else None


def _excerpt(flag: StoredFlag) -> str:
    """The beginning of what was asked last; never of the answer."""
    asked = [message for message in flag.messages if message.get("role") == "user"]
    text = " ".join(text_of(asked[-1].get("content")).split()) if asked else ""
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


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
