"""/v1/guard/runs and /v1/guard/adapters: the refine loop's runs and the adapters. Owns the requests
and responses of these routes. Servers pick up an activation or a rollout within adapter_poll_s.
Does not start or cancel runs itself (jobs/run_control.py), or show rollouts (rollouts.py).
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from guard.calibrations import Calibrations
from guard.errors import AdapterUnknown, RunUnknown
from guard.store.adapters import Activation, AdapterStore, StoredAdapter
from guard.store.rollouts import RolloutStore, parse_share
from guard.store.runs import RunStore, StoredRun
from server.auth.access import Caller
from server.errors import REFUSALS
from server.jobs.run_control import RunControl
from server.routes.checked import CheckedRoute, Id

_MAX_ACTIVATIONS = 1000


class Page(BaseModel):
    """A page of a list, newest first."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Id | None = Field(None, description="The last_id of the page before.")


Share = Annotated[float, BeforeValidator(parse_share, json_schema_input_type=float | str)]
"""A share of requests: 0.05 or "5%"."""


class Reason(BaseModel):
    """Why an adapter is activated; kept in the history."""

    model_config = ConfigDict(extra="forbid")
    reason: Annotated[str, Field(max_length=1000)] = ""


class Promotion(Reason):
    """How an adapter is activated. share: of requests that it answers at first; None for all."""

    share: Share | None = None


def _runs(request: Request) -> RunStore:
    runs: RunStore = request.app.state.setback.runs
    return runs


def _control(request: Request) -> RunControl:
    control: RunControl = request.app.state.setback.control
    return control


def _adapters(request: Request) -> AdapterStore:
    registry: AdapterStore = request.app.state.setback.registry
    return registry


def _rollouts(request: Request) -> RolloutStore:
    rollouts: RolloutStore = request.app.state.setback.rollout_store
    return rollouts


def _calibrations(request: Request) -> Calibrations:
    calibrations: Calibrations = request.app.state.setback.calibrations
    return calibrations


Runs = Annotated[RunStore, Depends(_runs)]
Control = Annotated[RunControl, Depends(_control)]
Registry = Annotated[AdapterStore, Depends(_adapters)]
Rollouts = Annotated[RolloutStore, Depends(_rollouts)]
CalibrationsParam = Annotated[Calibrations, Depends(_calibrations)]


async def _run(runs: Runs, run_id: Annotated[Id, Path()]) -> StoredRun:
    run = await runs.get(run_id)
    if run is None:
        raise RunUnknown(f"There is no run {run_id}")
    return run


async def _adapter(registry: Registry, version: Annotated[Id, Path()]) -> StoredAdapter:
    adapter = await registry.get(version)
    if adapter is None:
        raise AdapterUnknown(f"There is no adapter {version}")
    return adapter


Run = Annotated[StoredRun, Depends(_run)]
"""The run with the number in the path."""
Adapter = Annotated[StoredAdapter, Depends(_adapter)]
"""The adapter with the version in the path."""

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


@router.get("/runs")
async def list_runs(runs: Runs, page: Annotated[Page, Query()]) -> dict[str, Any]:
    """Lists a page of runs, newest first."""
    rows = await runs.list(page.limit + 1, before_id=page.after)
    return as_list([as_object("run", run) for run in rows], page.limit)


@router.post("/runs")
async def start_run(control: Control, by: Caller) -> dict[str, Any]:
    """Starts a run, or resumes one whose job was killed. Only one can run at a time."""
    return as_object("run", await control.start(by))


@router.post("/runs/{run_id}/cancel")
async def cancel_run(control: Control, by: Caller, run_id: Annotated[Id, Path()]) -> dict[str, Any]:
    """Cancels a run. If it has made an adapter, that is rejected."""
    return as_object("run", await control.cancel(run_id, by))


@router.get("/runs/{run_id}/events")
async def follow_run(control: Control, run: Run) -> StreamingResponse:
    """Streams the run as server-sent events: now, on each change, and [DONE] when it has ended."""

    async def events() -> AsyncIterator[str]:
        async for state in control.follow(run):
            yield f"data: {json.dumps(as_object('run', state))}\n\n"
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@router.get("/runs/{run_id}")
async def show_run(runs: Runs, run: Run) -> dict[str, Any]:
    """Shows one run: its stage, the flags it used, its gate's figures and why it ended."""
    flags = await runs.flags_of(run.id)
    return {**as_object("run", run), "flags": {str(flag): use for flag, use in flags.items()}}


@router.get("/adapters")
async def list_adapters(registry: Registry, page: Annotated[Page, Query()]) -> dict[str, Any]:
    """Lists a page of adapters, newest first; `active` names the active version."""
    adapters = await registry.list(page.limit + 1, before=page.after)
    active = await registry.active()
    objects = [
        {**as_object("adapter", adapter), "active": adapter.version == active}
        for adapter in adapters
    ]
    return {**as_list(objects, page.limit), "active": active}


@router.get("/adapters/{version}")
async def show_adapter(registry: Registry, runs: Runs, adapter: Adapter) -> dict[str, Any]:
    """Shows one adapter: its lineage back to the flags, its gate's figures and its activations."""
    version = adapter.version
    run = await runs.get(version)
    history = await registry.history(_MAX_ACTIVATIONS, version)
    return {
        **as_object("adapter", adapter),
        "active": await registry.active() == version,
        "lineage": asdict(await runs.learned_from(version)),
        "measures": run and run.measures,
        "reasons": run.reasons if run else (),
        "activations": [_activation(activation) for activation in history],
    }


@router.post("/adapters/rollback")
async def roll_back(registry: Registry, by: Caller, why: Reason) -> dict[str, Any]:
    """Activates what was active before the current adapter. Repeated calls go further back."""
    return _activation(await registry.rollback(by=by, reason=why.reason))


@router.post("/adapters/{version}/promote")
async def promote(
    registry: Registry,
    rollouts: Rollouts,
    by: Caller,
    version: Annotated[Id, Path()],
    how: Promotion,
) -> dict[str, Any]:
    """Activates an adapter, whatever its gate said, unless it was rejected. With a share it answers
    only that share of requests, until a comparison with the active one completes or reverts it."""
    if how.share is None:
        return _activation(await registry.activate(version, by=by, reason=how.reason))
    started = await rollouts.start(version, share=how.share, by=by, reason=how.reason)
    return as_object("rollout", started)


def as_object(kind: str, value: Any) -> dict[str, Any]:
    """Returns a stored value as JSON, with times in Unix seconds as in OpenAI's objects."""
    fields = {
        name: int(field.timestamp()) if isinstance(field, datetime) else field
        for name, field in asdict(value).items()
    }
    return {"object": f"guard.{kind}", **fields}


def _activation(activation: Activation) -> dict[str, Any]:
    return as_object("activation", activation)


def as_list(objects: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Returns a page of at most `limit` objects, of which one more is given if there are more."""
    page = objects[:limit]
    ids = [item.get("id", item.get("version")) for item in page]
    return {
        "object": "list",
        "data": page,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(objects) > limit,
    }
