"""/v1/guard/runs, /v1/guard/adapters and /v1/guard/policy: what the refine loop did, which adapter
is in force, and what decides. Owns these routes' requests and responses; servers take an activation
within adapter_poll_s. Runs are started and ended by jobs/run_control.py.
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
from guard.policy import Policy
from guard.store.adapters import Activation, AdapterStore, StoredAdapter
from guard.store.runs import RunStore, StoredRun
from server.auth.access import Caller
from server.errors import REFUSALS
from server.jobs.run_control import RunControl
from server.routes.checked import CheckedRoute, Id

_HISTORY = 1000


class Page(BaseModel):
    """A page of a list, newest first."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Id | None = Field(None, description="The last_id of the page before.")


class Reason(BaseModel):
    """Why an adapter is put in force; kept in the history."""

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


def _policy(request: Request) -> Policy:
    policy: Policy = request.app.state.setback.policy
    return policy


Runs = Annotated[RunStore, Depends(_runs)]
Control = Annotated[RunControl, Depends(_control)]
Registry = Annotated[AdapterStore, Depends(_adapters)]
Fits = Annotated[Calibrations, Depends(_calibrations)]


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
"""The one of the number in the path."""
Adapter = Annotated[StoredAdapter, Depends(_adapter)]
"""The same."""

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


@router.get("/runs")
async def list_runs(runs: Runs, asked: Annotated[Page, Query()]) -> dict[str, Any]:
    """A page of runs, newest first."""
    found = await runs.list(asked.limit + 1, before_id=asked.after)
    return _list([_object("run", run) for run in found], asked.limit)


@router.post("/runs")
async def start_run(control: Control, by: Caller) -> dict[str, Any]:
    """Starts a run, or goes on with one whose job was killed; one runs at a time."""
    return _object("run", await control.start(by))


@router.post("/runs/{run_id}/cancel")
async def cancel_run(control: Control, by: Caller, run_id: Annotated[Id, Path()]) -> dict[str, Any]:
    """Ends a run; its adapter, if it came to one, is rejected."""
    return _object("run", await control.cancel(run_id, by))


@router.get("/runs/{run_id}/events")
async def follow_run(control: Control, run: Run) -> StreamingResponse:
    """The run as server-sent events: now, whenever it changes, and [DONE] once it is over."""

    async def events() -> AsyncIterator[str]:
        async for each in control.follow(run):
            yield f"data: {json.dumps(_object('run', each))}\n\n"
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@router.get("/runs/{run_id}")
async def show_run(runs: Runs, run: Run) -> dict[str, Any]:
    """One run: its stage, the flags it took, what its gate measured and why it ended so."""
    flags = await runs.flags_of(run.id)
    return {**_object("run", run), "flags": {str(flag): use for flag, use in flags.items()}}


@router.get("/adapters")
async def list_adapters(registry: Registry, asked: Annotated[Page, Query()]) -> dict[str, Any]:
    """A page of adapters, newest first; `active` says which is in force."""
    found = await registry.list(asked.limit + 1, before=asked.after)
    active = await registry.active()
    told = [{**_object("adapter", one), "active": one.version == active} for one in found]
    return {**_list(told, asked.limit), "active": active}


@router.get("/adapters/{version}")
async def show_adapter(registry: Registry, runs: Runs, adapter: Adapter) -> dict[str, Any]:
    """One adapter: its lineage back to the flags, its gate's figures, when it was in force."""
    version = adapter.version
    run = await runs.get(version)
    history = await registry.history(_HISTORY, version)
    return {
        **_object("adapter", adapter),
        "active": await registry.active() == version,
        "lineage": asdict(await runs.learned_from(version)),
        "measures": run and run.measures,
        "reasons": run.reasons if run else (),
        "activations": [_activation(each) for each in history],
    }


@router.post("/adapters/rollback")
async def roll_back(registry: Registry, by: Caller, why: Reason) -> dict[str, Any]:
    """Goes back to what was in force before the present adapter; repeated, further back."""
    return _activation(await registry.rollback(by=by, reason=why.reason))


@router.post("/adapters/{version}/promote")
async def promote(
    registry: Registry, by: Caller, version: Annotated[Id, Path()], why: Reason
) -> dict[str, Any]:
    """Puts an adapter in force, whatever its gate said; a rejected one never."""
    return _activation(await registry.activate(version, by=by, reason=why.reason))


@router.get("/policy")
async def show_policy(policy: Annotated[Policy, Depends(_policy)]) -> dict[str, Any]:
    """The policy in force in this process, and its hash."""
    return {"object": "guard.policy", **asdict(policy)}


def _object(kind: str, value: Any) -> dict[str, Any]:
    """A stored value as JSON; times in Unix seconds, as OpenAI's objects have them."""
    told = {
        name: int(each.timestamp()) if isinstance(each, datetime) else each
        for name, each in asdict(value).items()
    }
    return {"object": f"guard.{kind}", **told}


def _activation(done: Activation) -> dict[str, Any]:
    return _object("activation", done)


def _list(told: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    page = told[:limit]
    ids = [each.get("id", each.get("version")) for each in page]
    return {
        "object": "list",
        "data": page,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(told) > limit,
    }
