"""Every guard error has a status and OpenAI's format."""

import json
import logging

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from guard import errors
from guard.errors import GuardError
from server.errors import STATUS, error_response, guard_error_response, on_http_error

ALL = [value for value in vars(errors).values() if isinstance(value, type)]
KINDS = [kind for kind in ALL if issubclass(kind, GuardError) and kind is not GuardError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_guard_error_is_mapped(kind: type[GuardError]) -> None:
    response = guard_error_response(kind("what is wrong"))
    assert response.status_code == STATUS[kind]
    error = json.loads(bytes(response.body))["error"]
    assert (error["message"] == "what is wrong") is (kind is not errors.StoreUnavailable)
    assert error["code"] == kind.code
    assert error["type"] == ("server_error" if STATUS[kind] >= 500 else "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_a_caller_is_not_told_where_the_database_is(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vllm.setback").addHandler(caplog.handler)
    error = errors.StoreUnavailable("The flag store postgresql://setback@10.0.0.7/flags failed")
    response = guard_error_response(error)
    logging.getLogger("vllm.setback").removeHandler(caplog.handler)
    assert b"10.0.0.7" not in response.body
    assert "10.0.0.7" in caplog.text


async def test_a_base_url_without_v1_is_told_the_right_one() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/chat/completions",
        "scheme": "http",
        "server": ("guard.example", 8000),
        "headers": [],
        "query_string": b"",
    }
    response = await on_http_error(Request(scope), HTTPException(404, "Not Found"))
    message = json.loads(bytes(response.body))["error"]["message"]
    assert "http://guard.example:8000/v1" in message
    assert "SETBACK_OPEN_ROUTES" not in message


def test_a_rate_limit_has_openais_type() -> None:
    response = error_response(429, "slower", code="rate_limit_exceeded")
    assert json.loads(bytes(response.body))["error"]["type"] == "requests"


def test_the_field_to_change_is_named() -> None:
    error = guard_error_response(errors.Unsupported("no", param="use_beam_search"))
    assert json.loads(bytes(error.body))["error"]["param"] == "use_beam_search"
    blocked = guard_error_response(errors.InputBlocked("flagged"))
    assert json.loads(bytes(blocked.body))["error"] == {
        "message": "flagged",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "content_filter",
    }


def test_a_message_may_quote_invalid_unicode() -> None:
    response = error_response(400, "no field \ud800\0", code="invalid_value", param="\ud800")
    error = json.loads(bytes(response.body))["error"]
    assert (error["message"], error["param"]) == ("no field \ufffd\ufffd", "\ufffd")


@pytest.mark.parametrize(
    ("status", "code", "hinted"),
    [
        (400, "invalid_request", False),
        (404, "route_unavailable", True),
        (405, "route_unavailable", True),
        (413, "invalid_request", False),
    ],
)
async def test_only_what_has_no_route_is_told_how_to_open_one(
    status: int, code: str, hinted: bool
) -> None:
    # As some proxies send it: this query is no text.
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "query_string": b"\xff"}
    response = await on_http_error(Request(scope), HTTPException(status, "it failed"))
    error = json.loads(bytes(response.body))["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"].startswith("POST /v1/x: it failed.")
    assert ("SETBACK_OPEN_ROUTES" in error["message"]) is hinted
