"""The tools that a request offers to the model, and whether its policy allows them. Owns where each
API names them. Does not judge calls (guard/): a call is a part of the answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from guard.policy import Policy
from server.errors import BadRequest

_FIELDS = ("tools", "functions")


def check_tools(body: Mapping[str, Any], policy: Policy) -> None:
    """Raises BadRequest for the first tool that the policy does not allow."""
    if policy.tools is None:
        return
    for field, name in _offered(body):
        if name not in policy.tools:
            raise BadRequest(
                f"{field}: the policy {policy.name!r} does not allow the tool {name!r}; it allows "
                f"{', '.join(policy.tools)}.",
                field,
                "tool_not_allowed",
            )


def _offered(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each tool's field and name. A tool without one, such as a hosted tool of the Responses
    API, is named by its type."""
    for field in _FIELDS:
        tools = body.get(field)
        for number, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict):
                function = tool.get("function")
                named = function if isinstance(function, dict) else tool
                yield f"{field}.{number}", str(named.get("name") or tool.get("type"))
