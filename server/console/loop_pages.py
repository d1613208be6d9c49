"""/console/runs and /console/adapters: what the refine loop does, and which adapter is in force.
Owns these pages; the work is jobs/run_control.py's and the stores'.
"""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response

from guard.store.runs import STAGES, StoredRun
from refine.evaluation.figures import side_by_side
from server.auth.access import Caller
from server.auth.sessions import CONSOLE
from server.console.view import PageRoute, page, see
from server.routes.checked import Id
from server.routes.loop import Adapter, Control, Fits, Registry, Run, Runs

_SHOWN = 50
_HISTORY = 1000

Reason = Annotated[str, Form(max_length=1000)]

router = APIRouter(prefix="/console", route_class=PageRoute, include_in_schema=False)


@router.get("/runs")
async def list_runs(request: Request, runs: Runs) -> Response:
    """The newest runs, and the way to start one."""
    return page(request, "runs.html", runs=await runs.list(_SHOWN))


@router.post("/runs")
async def start_run(request: Request, control: Control, by: Caller) -> Response:
    """Starts a run and shows it."""
    run = await control.start(by)
    return see(request, f"{CONSOLE}/runs/{run.id}")


@router.get("/runs/{run_id}")
async def show_run(request: Request, runs: Runs, run: Run) -> Response:
    """One run; while it is under way, its page asks for the part that changes again and again."""
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
    """Ends a run."""
    await control.cancel(run_id, by)
    return see(request, f"{CONSOLE}/runs/{run_id}")


@router.get("/adapters")
async def list_adapters(request: Request, registry: Registry, fits: Fits) -> Response:
    """The newest adapters, which is in force, and how it came to be so."""
    way = await registry.preferred()
    return page(
        request,
        "adapters.html",
        adapters=await registry.list(_SHOWN),
        active=way[0],
        fit=fits.fit_of(way[0]),
        before=way[1:2],
        history=await registry.history(_SHOWN),
    )


@router.get("/adapters/rollback")
async def ask_rollback(request: Request, registry: Registry) -> Response:
    """Says what a rollback would bring, and asks."""
    way = await registry.preferred()
    return page(request, "rollback.html", active=way[0], before=way[1:2])


@router.post("/adapters/rollback")
async def roll_back(
    request: Request, registry: Registry, by: Caller, reason: Reason = ""
) -> Response:
    """Goes back to what was in force before."""
    await registry.rollback(by=by, reason=reason)
    return see(request, f"{CONSOLE}/adapters")


@router.get("/adapters/{version}")
async def show_adapter(
    request: Request, registry: Registry, runs: Runs, fits: Fits, adapter: Adapter
) -> Response:
    """One adapter: its lineage, its gate's figures, when it was in force."""
    version = adapter.version
    run = await runs.get(version)
    return page(
        request,
        "adapter.html",
        adapter=adapter,
        active=await registry.active(),
        fit=fits.fit_of(version),
        run=run,
        lineage=await runs.learned_from(version),
        figures=side_by_side(run.measures if run else None),
        history=await registry.history(_HISTORY, version),
    )


@router.get("/adapters/{version}/promote")
async def ask_promote(
    request: Request, registry: Registry, runs: Runs, adapter: Adapter
) -> Response:
    """Says what a promotion would change, and asks."""
    run, active = await runs.get(adapter.version), await registry.active()
    return page(request, "promote.html", adapter=adapter, run=run, active=active)


@router.post("/adapters/{version}/promote")
async def promote(
    request: Request,
    registry: Registry,
    by: Caller,
    version: Annotated[Id, Path()],
    reason: Reason = "",
) -> Response:
    """Puts an adapter in force."""
    await registry.activate(version, by=by, reason=reason)
    return see(request, f"{CONSOLE}/adapters")


def _stages(run: StoredRun) -> list[tuple[str, str]]:
    """Each stage and how far it is: done, now, stopped or waiting."""
    reached = STAGES.index(run.stage)
    here = "now" if run.status == "running" else "done" if _whole(run) else "stopped"
    states = ["done"] * reached + [here] + ["waiting"] * (len(STAGES) - reached - 1)
    return list(zip(STAGES, states, strict=True))


def _whole(run: StoredRun) -> bool:
    return run.status in ("promoted", "rejected")
