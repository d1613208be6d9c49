"""The policy of one request, from its key, its model, its route and its header. Owns what of a
request counts. Does not own the choice (guard/policies.py) or who may call (server/auth/access.py).
"""

from starlette.datastructures import Headers
from starlette.types import Scope

from guard.policies import Policies
from guard.policy import Policy
from server.routes.open import path_of

POLICY_HEADER = "x-setback-policy"
"""Of a request: the policy that the caller wants. Of a response: the policy that it got, and its
hash."""

KEY_POLICY = "setback.policy"
"""Where the scope has the policy of the caller's key."""


def policy_of(scope: Scope, model: object) -> Policy:
    """Returns the request's policy. model: as the request names it. Raises PolicyUnknown or
    PolicyRefused."""
    policies: Policies = scope["app"].state.setback.policies
    return policies.current.choose(
        key=scope.get(KEY_POLICY),
        model=model,
        route=path_of(scope),
        requested=Headers(scope=scope).get(POLICY_HEADER),
    )


def header_value(policy: Policy) -> str:
    """Returns the response's header."""
    return f"{policy.name}@{policy.hash}"
