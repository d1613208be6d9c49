"""/console/policy: the policies in force, with a text to change them by, to try it on the stored
flags and to activate it. Owns this page. Does not decide on flags (guard/policy_trial.py).
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from guard.criteria import Place
from guard.errors import PolicyInvalid
from guard.policies import PolicySet
from guard.policy import Policy
from guard.policy_trial import Trial, try_policy
from guard.store.policies import PolicyStore
from guard.store.review import Filter, ReviewStore
from server.auth.access import Caller
from server.auth.sessions import CONSOLE
from server.console.view import PageRoute, page, redirect
from server.errors import BadRequest
from server.launch.policy_reload import PolicySource

_PAGE = f"{CONSOLE}/policy"
_TRIED = timedelta(days=30)
_MOST_FLAGS = 10_000
_VERSIONS = 20

Text = Annotated[str, Form(max_length=200_000)]

router = APIRouter(prefix="/console/policy", route_class=PageRoute, include_in_schema=False)


@router.get("")
async def show(request: Request) -> Response:
    """Shows what is in force and the text of it."""
    return await _page(request, _source(request).text)


@router.post("/try")
async def try_text(request: Request, text: Text) -> Response:
    """Shows what a text would have done to the stored flags, or what is wrong with it."""
    text = _with_newlines(text)
    try:
        policies = await asyncio.to_thread(_source(request).parse, text)
    except PolicyInvalid as error:
        return await _page(request, text, problem=str(error), status=400)
    reviews: ReviewStore = request.app.state.setback.reviews
    answers = Filter(since=datetime.now(UTC) - _TRIED, place=Place.OUTPUT)
    flags = await reviews.page(answers, _MOST_FLAGS)
    trials = await asyncio.to_thread(
        lambda: [(policy, try_policy(policy, flags)) for policy in policies]
    )
    return await _page(request, text, trials=trials)


@router.post("")
async def activate(request: Request, by: Caller, text: Text) -> Response:
    """Puts a text in force for all servers of the database."""
    source, text = _source(request), _with_newlines(text)
    if not source.editable:
        raise BadRequest(
            "The policy is in a file (SETBACK_POLICY_FILE); change that.", "text", status=409
        )
    try:
        await source.activate(text, by)
    except PolicyInvalid as error:
        return await _page(request, text, problem=str(error), status=400)
    state = request.app.state.setback
    await source.refresh(state.policies, state.critic)
    return redirect(request, f"{_PAGE}?said=The+policy+is+in+force.")


async def _page(
    request: Request,
    text: str,
    *,
    problem: str | None = None,
    trials: Sequence[tuple[Policy, Trial]] = (),
    status: int = 200,
) -> Response:
    store: PolicyStore = request.app.state.setback.policy_store
    policies: PolicySet = request.app.state.setback.policies.current
    return page(
        request,
        "policy.html",
        status=status,
        policies=policies,
        text=text,
        editable=_source(request).editable,
        problem=problem,
        trials=trials,
        versions=await store.files(_VERSIONS),
        said=request.query_params.get("said"),
    )


def _source(request: Request) -> PolicySource:
    source: PolicySource = request.app.state.setback.policy_source
    return source


def _with_newlines(text: str) -> str:
    """Returns a form's text, in which browsers send CR and LF, as files have it."""
    return text.replace("\r\n", "\n")
