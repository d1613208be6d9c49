"""/console/runs and /console/adapters: the refine loop's runs, the adapters and the last rollout.
Owns these pages. Does not start or cancel runs itself (jobs/run_control.py).
"""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response

from guard.store.runs import STAGES, StoredRun
from refine.evaluation.figures import side_by_side
from server.auth.access import Caller
from server.auth.sessions import CONSOLE
from server.console.view import PageRoute, page, redirect
from server.jobs.rollout_decision import standing
from server.routes.checked import Id
from server.routes.loop import (
    Adapter,
    CalibrationsParam,
    Control,
    Registry,
    Rollouts,
    Run,
    Runs,
    Share,
)
from server.routes.replicas import Replicas
from server.routes.rollouts import MarginsParam

_PAGE_SIZE = 50
_MAX_ACTIVATIONS = 1000

Reason = Annotated[str, Form(max_length=1000)]

router = APIRouter(prefix="/console", route_class=PageRoute, include_in_schema=False)


@router.get("/runs")
async def list_runs(request: Request, runs: Runs) -> Response:
    """Lists the newest runs, with a button to start one."""
    return page(request, "runs.html", runs=await runs.list(_PAGE_SIZE))


@router.post("/runs")
async def start_run(request: Request, control: Control, by: Caller) -> Response:
    """Starts a run and shows it."""
    run = await control.start(by)
    return redirect(request, f"{CONSOLE}/runs/{run.id}")


@router.get("/runs/{run_id}")
async def show_run(request: Request, runs: Runs, run: Run) -> Response:
    """Shows one run. While it is running, its page polls the part that changes."""
    part = "hx-request" in request.headers
    uses = list((await runs.flags_of(run.id)).values())
    return page(
        request,
        "run_part.html" if part else "run.html",
        run=run,
        stages=_stages(run),
        uses={use: uses.count(use) for use in sorted(set(uses))},
        figures=side_by_side(run.measures),
    )


@router.post("/runs/{run_id}/cancel")
async def cancel_run(
    request: Request, control: Control, by: Caller, run_id: Annotated[Id, Path()]
) -> Response:
    """Cancels a run."""
    await control.cancel(run_id, by)
    return redirect(request, f"{CONSOLE}/runs/{run_id}")


@router.get("/adapters")
async def list_adapters(
    request: Request,
    registry: Registry,
    rollouts: Rollouts,
    margins: MarginsParam,
    calibrations: CalibrationsParam,
    replicas: Replicas,
) -> Response:
    """Lists the newest adapters, the active one, which server has it, the last rollout, and all
    activations."""
    path = await registry.preferred()
    return page(
        request,
        "adapters.html",
        adapters=await registry.list(_PAGE_SIZE),
        rollout=next(iter(await standing(rollouts, margins, limit=1)), None),
        active=path[0],
        fit=calibrations.fit_of(path[0]),
        before=path[1:2],
        history=await registry.history(_PAGE_SIZE),
        replicas=replicas,
    )


@router.get("/adapters/rollback")
async def ask_rollback(request: Request, registry: Registry) -> Response:
    """Shows what a rollback would activate, and asks for confirmation."""
    path = await registry.preferred()
    return page(request, "rollback.html", active=path[0], before=path[1:2])


@router.post("/adapters/rollback")
async def roll_back(
    request: Request, registry: Registry, by: Caller, reason: Reason = ""
) -> Response:
    """Activates what was active before."""
    await registry.rollback(by=by, reason=reason)
    return redirect(request, f"{CONSOLE}/adapters")


@router.get("/adapters/{version}")
async def show_adapter(
    request: Request,
    registry: Registry,
    runs: Runs,
    calibrations: CalibrationsParam,
    adapter: Adapter,
) -> Response:
    """Shows one adapter: its lineage, its gate's figures and its activations."""
    version = adapter.version
    run = await runs.get(version)
    return page(
        request,
        "adapter.html",
        adapter=adapter,
        active=await registry.active(),
        fit=calibrations.fit_of(version),
        run=run,
        lineage=await runs.learned_from(version),
        figures=side_by_side(run.measures if run else None),
        history=await registry.history(_MAX_ACTIVATIONS, version),
    )


@router.get("/adapters/{version}/promote")
async def ask_promote(
    request: Request, registry: Registry, runs: Runs, adapter: Adapter
) -> Response:
    """Shows what a promotion would change, and asks for confirmation."""
    run, active = await runs.get(adapter.version), await registry.active()
    return page(request, "promote.html", adapter=adapter, run=run, active=active)


@router.post("/adapters/{version}/promote")
async def promote(
    request: Request,
    registry: Registry,
    rollouts: Rollouts,
    by: Caller,
    version: Annotated[Id, Path()],
    reason: Reason = "",
    share: Annotated[Share | None, Form()] = None,
) -> Response:
    """Activates an adapter, or starts its rollout to a share of requests."""
    if share is None:
        await registry.activate(version, by=by, reason=reason)
    else:
        await rollouts.start(version, share=share, by=by, reason=reason)
    return redirect(request, f"{CONSOLE}/adapters")


@router.post("/rollouts/stop")
async def stop_rollout(
    request: Request, rollouts: Rollouts, by: Caller, reason: Reason = ""
) -> Response:
    """Stops the running rollout."""
    await rollouts.stop(by=by, reason=reason)
    return redirect(request, f"{CONSOLE}/adapters")


def _stages(run: StoredRun) -> list[tuple[str, str]]:
    """Returns each stage with its state: done, now, stopped or waiting."""
    index = STAGES.index(run.stage)
    current = "now" if run.status == "running" else "done" if _completed(run) else "stopped"
    states = ["done"] * index + [current] + ["waiting"] * (len(STAGES) - index - 1)
    return list(zip(STAGES, states, strict=True))


def _completed(run: StoredRun) -> bool:
    return run.status in ("promoted", "rejected")
