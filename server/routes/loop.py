"""/v1/guard/runs and /v1/guard/adapters: the refine loop's runs and the adapters. Owns the requests
and responses of these routes. Servers pick up an activation within adapter_poll_s. Does not start
or cancel runs itself (jobs/run_control.py).
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from guard.calibrations import Calibrations
from guard.errors import AdapterUnknown, RunUnknown
from guard.store.adapters import Activation, AdapterStore, StoredAdapter
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


class Reason(BaseModel):
    """Why an adapter is activated; kept in the history."""

    model_config = ConfigDict(extra="forbid")
    reason: Annotated[str, Field(max_length=1000)] = ""


def _runs(request: Request) -> RunStore:
    runs: RunStore = request.app.state.setback.runs
    return runs


def _control(request: Request) -> RunControl:
    control: RunControl = request.app.state.setback.control
    return control


def _adapters(request: Request) -> AdapterStore:
    registry: AdapterStore = request.app.state.setback.registry
    return registry


def _calibrations(request: Request) -> Calibrations:
    calibrations: Calibrations = request.app.state.setback.calibrations
    return calibrations


Runs = Annotated[RunStore, Depends(_runs)]
Control = Annotated[RunControl, Depends(_control)]
Registry = Annotated[AdapterStore, Depends(_adapters)]
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
    return _list([_object("run", run) for run in rows], page.limit)


@router.post("/runs")
async def start_run(control: Control, by: Caller) -> dict[str, Any]:
    """Starts a run, or resumes one whose job was killed. Only one can run at a time."""
    return _object("run", await control.start(by))


@router.post("/runs/{run_id}/cancel")
async def cancel_run(control: Control, by: Caller, run_id: Annotated[Id, Path()]) -> dict[str, Any]:
    """Cancels a run. If it has made an adapter, that is rejected."""
    return _object("run", await control.cancel(run_id, by))


@router.get("/runs/{run_id}/events")
async def follow_run(control: Control, run: Run) -> StreamingResponse:
    """Streams the run as server-sent events: now, on each change, and [DONE] when it has ended."""

    async def events() -> AsyncIterator[str]:
        async for state in control.follow(run):
            yield f"data: {json.dumps(_object('run', state))}\n\n"
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@router.get("/runs/{run_id}")
async def show_run(runs: Runs, run: Run) -> dict[str, Any]:
    """Shows one run: its stage, the flags it used, its gate's figures and why it ended."""
    flags = await runs.flags_of(run.id)
    return {**_object("run", run), "flags": {str(flag): use for flag, use in flags.items()}}


@router.get("/adapters")
async def list_adapters(registry: Registry, page: Annotated[Page, Query()]) -> dict[str, Any]:
    """Lists a page of adapters, newest first; `active` names the active version."""
    adapters = await registry.list(page.limit + 1, before=page.after)
    active = await registry.active()
    objects = [
        {**_object("adapter", adapter), "active": adapter.version == active} for adapter in adapters
    ]
    return {**_list(objects, page.limit), "active": active}


@router.get("/adapters/{version}")
async def show_adapter(registry: Registry, runs: Runs, adapter: Adapter) -> dict[str, Any]:
    """Shows one adapter: its lineage back to the flags, its gate's figures and its activations."""
    version = adapter.version
    run = await runs.get(version)
    history = await registry.history(_MAX_ACTIVATIONS, version)
    return {
        **_object("adapter", adapter),
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
    registry: Registry, by: Caller, version: Annotated[Id, Path()], why: Reason
) -> dict[str, Any]:
    """Activates an adapter, whatever its gate said, unless it was rejected."""
    return _activation(await registry.activate(version, by=by, reason=why.reason))


def _object(kind: str, value: Any) -> dict[str, Any]:
    """Returns a stored value as JSON, with times in Unix seconds as in OpenAI's objects."""
    fields = {
        name: int(field.timestamp()) if isinstance(field, datetime) else field
        for name, field in asdict(value).items()
    }
    return {"object": f"guard.{kind}", **fields}


def _activation(activation: Activation) -> dict[str, Any]:
    return _object("activation", activation)


def _list(objects: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    page = objects[:limit]
    ids = [item.get("id", item.get("version")) for item in page]
    return {
        "object": "list",
        "data": page,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(objects) > limit,
    }
