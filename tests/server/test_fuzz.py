"""Our own routes answer or refuse all that /openapi.json allows, and much that it does not, on both
kinds of database."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from guard.store.flags import Flag
from server.errors import Refusal
from server.routes.open import REVIEW
from tests.fuzz import Fuzz
from tests.server.face import BASE_URL, fill, open_face

EXAMPLES, MANY = 25, 500
NEAR = 7
ENDS_AT_ONCE = ("true",)
DELETING = (
    "/v1/guard/flags/{flag_id}",
    "/v1/guard/users/{user_hash}",
    "/v1/guard/flags/purge",
)
NO_RUN = ("POST", "/v1/guard/runs", 503)


def nearer(fields: dict[str, Any]) -> None:
    """Makes half of all numbers small, so that they match existing rows."""
    for name, value in fields.items():
        if type(value) is int and value % 2:
            fields[name] = value % NEAR


def test_our_routes_answer_or_refuse(
    database: URL, flag: Flag, pytestconfig: pytest.Config
) -> None:
    examples = MANY if pytestconfig.getoption("--full") else EXAMPLES
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        face = runner.run(stack.enter_async_context(open_face(database, job=ENDS_AT_ONCE)))
        client = runner.run(stack.enter_async_context(face.client()))
        runner.run(fill(face, flag, "oddity"))
        fuzz = Fuzz(face.app.openapi(), BASE_URL, nearer)

        def send(request: httpx.Request) -> int:
            response = runner.run(client.send(request))
            outcome = (request.method, request.url.path, response.status_code)
            assert response.status_code < 500 or outcome == NO_RUN, response.text
            if response.status_code >= 400:
                Refusal.model_validate(response.json())
            return response.status_code

        for path in (*sorted(REVIEW.difference(DELETING)), *DELETING):
            assert fuzz.attempt(path, examples, send) & {200, 409, 503}, path
        runner.run(stack.aclose())
