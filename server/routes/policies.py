"""/v1/guard/policy and /v1/guard/policies: the policies in force, and every one that was. Owns the
responses of these routes. Changes nothing: the policy file does.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from guard.policies import Policies, PolicySet
from guard.store.policies import PolicyStore
from server.errors import REFUSALS
from server.routes.checked import CheckedRoute

router = APIRouter(prefix="/v1/guard", tags=["guard"], route_class=CheckedRoute, responses=REFUSALS)


def _in_force(request: Request) -> PolicySet:
    policies: Policies = request.app.state.setback.policies
    return policies.current


InForce = Annotated[PolicySet, Depends(_in_force)]
"""The policies in force, for any route."""


def _store(request: Request) -> PolicyStore:
    store: PolicyStore = request.app.state.setback.policy_store
    return store


@router.get("/policy")
async def show_policy(policies: InForce) -> dict[str, Any]:
    """Shows the default policy of this process and its hash, and the policies beside it."""
    named = [asdict(policy) for policy in policies.named.values()]
    assigned = {"models": policies.models, "routes": policies.routes}
    return {"object": "guard.policy", **asdict(policies.default), "named": named, **assigned}


@router.get("/policies")
async def list_policies(
    store: Annotated[PolicyStore, Depends(_store)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Lists every policy that was in force, newest first."""
    rows = await store.list(limit)
    data = [
        {"object": "guard.policy", **asdict(row), "created_at": int(row.created_at.timestamp())}
        for row in rows
    ]
    return {"object": "list", "data": data}
