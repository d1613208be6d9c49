"""/v1/guard/rollouts: staged rollouts with their figures. Owns the requests and responses of these
routes. A promotion with a share starts one (loop.py); the figures are jobs/rollout_decision.py's.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from server.auth.access import Caller
from server.errors import REFUSALS
from server.jobs.rollout_decision import Compared, Margins, Standing, standing
from server.routes.checked import CheckedRoute
from server.routes.loop import Page, Reason, Rollouts, as_list, as_object


def _margins(request: Request) -> Margins:
    margins: Margins = request.app.state.setback.rollout_margins
    return margins


MarginsParam = Annotated[Margins, Depends(_margins)]

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


@router.get("/rollouts")
async def list_rollouts(
    rollouts: Rollouts, margins: MarginsParam, page: Annotated[Page, Query()]
) -> dict[str, Any]:
    """Lists a page of rollouts with the counts and figures of both adapters, newest first."""
    newest = await standing(rollouts, margins, page.limit + 1, page.after)
    return as_list([_described(one) for one in newest], page.limit)


@router.post("/rollouts/stop")
async def stop_rollout(rollouts: Rollouts, by: Caller, why: Reason) -> dict[str, Any]:
    """Stops the running rollout. The adapter that was in force answers everything again."""
    return as_object("rollout", await rollouts.stop(by=by, reason=why.reason))


def _described(one: Standing) -> dict[str, Any]:
    figures = {figure.name: figure_fields(figure) for figure in one.figures}
    return {**as_object("rollout", one.rollout), "counts": asdict(one.counts), "figures": figures}


def figure_fields(figure: Compared) -> Mapping[str, Any]:
    """Returns a figure as JSON, without the bounds of a change that is not known."""
    known = figure.change is not None
    return {
        "old": figure.old,
        "new": figure.new,
        "change": figure.change,
        "low": figure.low if known else None,
        "high": figure.high if known else None,
        "limit": figure.limit,
    }
