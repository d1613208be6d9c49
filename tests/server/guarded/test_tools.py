"""A policy says which tools a request may offer, in every API's form."""

from dataclasses import replace
from typing import Any

import pytest

from guard.policy_file import load_policy
from server.errors import BadRequest
from server.guarded.tools import check_tools

POLICY = replace(load_policy(), name="kids", tools=("search", "web_search"))
CHAT = {"type": "function", "function": {"name": "mail"}}
FLAT = {"type": "function", "name": "mail"}


@pytest.mark.parametrize(
    ("body", "field", "name"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "search"}}, CHAT]},
            "tools.1",
            "mail",
        ),
        ({"tools": [FLAT]}, "tools.0", "mail"),
        ({"tools": [{"name": "mail", "input_schema": {}}]}, "tools.0", "mail"),
        ({"functions": [{"name": "mail"}]}, "functions.0", "mail"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0", "code_interpreter"),
        ({"tools": [{}]}, "tools.0", "None"),
    ],
)
def test_another_tool_is_refused_by_name(body: dict[str, Any], field: str, name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_tools(body, POLICY)
    assert (refused.value.param, refused.value.code) == (field, "tool_not_allowed")
    assert refused.value.message == (
        f"{field}: the policy 'kids' does not allow the tool {name!r}; "
        "it allows search, web_search."
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tools": None},
        {"tools": "search"},
        {"tools": [{"type": "function", "function": {"name": "search"}}, {"type": "web_search"}]},
    ],
)
def test_allowed_tools_pass(body: dict[str, Any]) -> None:
    check_tools(body, POLICY)
    check_tools({"tools": [CHAT]}, load_policy())
