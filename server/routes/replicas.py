"""/v1/guard/replicas: the API processes that share this database, and what each serves. Owns the
response. Does not collect the reports (jobs/replica_reports.py).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from guard.store.replicas import Replica, ReplicaStore
from server.errors import REFUSALS
from server.jobs.replica_reports import serving
from server.routes.checked import CheckedRoute

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


async def _serving(request: Request) -> Sequence[Replica]:
    store: ReplicaStore = request.app.state.setback.replicas
    return await serving(store)


Replicas = Annotated[Sequence[Replica], Depends(_serving)]


@router.get("/replicas")
async def list_replicas(replicas: Replicas) -> dict[str, Any]:
    """Lists the API processes that have reported in the last minute."""
    return {"object": "list", "data": [_described(one) for one in replicas]}


def _described(replica: Replica) -> dict[str, Any]:
    times = {"started_at": replica.started_at, "seen_at": replica.seen_at}
    seconds = {name: int(time.timestamp()) for name, time in times.items()}
    return {"object": "guard.replica", **asdict(replica), **seconds}
